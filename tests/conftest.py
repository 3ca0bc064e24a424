"""Four host devices, so that pmap is really parallel; strict broadcasting."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    """Return a random key."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Return a TFDS directory with `plates/small`, generated once per session."""
    from anchornet_jax import data

    directory = str(tmp_path_factory.mktemp("tfds"))
    data.prepare("plates/small", data_dir=directory)
    return directory
