"""Four host devices, so that pmap is really parallel; strict broadcasting."""

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What one process has compiled, the others of this session load.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="compiled_")  # removed at the end
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    # Programs run for moments here: to optimise their machine code takes longer.
    flags = (os.environ.get("XLA_FLAGS"), "--xla_backend_optimization_level=0")
    os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))

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
    from anchornet_jax.data import loading

    directory = str(tmp_path_factory.mktemp("tfds"))
    loading.prepare("plates/small", data_dir=directory)
    return directory
