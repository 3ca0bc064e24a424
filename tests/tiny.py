"""Networks of a layer or two, and a config that trains it in seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from anchornet_jax import models
from anchornet_jax.models import anchornet_2020, layers
from anchornet_jax.models.receptive_field import ReceptiveField
from configs import common


class Tiny(nn.Module):
    """Strided convolution, BatchNorm, mean, classifier."""

    num_classes: int
    axis_name: str | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train=False):
        """Return logits and no maps."""
        x = layers.conv_bn(
            images,
            8,
            ("conv1", "bn1"),
            kernel=5,
            stride=4,
            train=train,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        x = nn.relu(x).mean((1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, name="fc")(x), {}


class TinyScales(nn.Module):
    """A localiser of three branches, each one linear convolution."""

    num_classes: int
    axis_name: str | None = None
    dtype: str = "float32"

    fields = tuple(ReceptiveField(size, 4) for size in (12, 20, 28))
    field = fields[1]

    @staticmethod
    def contributions(variables, out, classes):
        """Return the evidence for one class per image, of each branch."""
        index = classes[:, None, None, None]
        return tuple(
            jnp.take_along_axis(maps, index, -1)[..., 0] for maps in out["evidence"]
        )

    @staticmethod
    def evidence(variables, out):
        """Return the evidence for every class, of each branch."""
        return out["evidence"]

    @staticmethod
    def classify(variables, out):
        """Return logits and branch."""
        logits, branch = out["branch_logits"], out["branch"]
        return jnp.take_along_axis(logits, branch[:, None, None], 1)[:, 0], branch

    @nn.compact
    def __call__(self, images, *, train=False):
        """Return what MultiScaleAnchorNet returns; it attends to all alike."""
        evidence = self._evidence(images)
        logits = jnp.stack([maps.mean((1, 2)) for maps in evidence], 1)
        _, branch = anchornet_2020.decide(jax.nn.softmax(logits))
        out = {
            "branch": branch,
            "branch_logits": logits,
            "evidence": evidence,
            "attention": tuple(jnp.ones(maps.shape[:3]) for maps in evidence),
        }
        return jnp.take_along_axis(logits, branch[:, None, None], 1)[:, 0], out

    def _evidence(self, images):
        return tuple(
            layers.Conv(self.num_classes, size, stride, name=f"b{size}")(images)
            for size, stride in self.fields
        )


class TinyMultiScaleAnchorNet(TinyScales):
    """The same with the patches of 2020, and two convolutions to see them."""

    fields = tuple(ReceptiveField(size, 8) for size in (63, 95, 111))
    field = fields[1]

    def _evidence(self, images):
        x = layers.Conv(4, 7, 8, name="stem")(images)
        return tuple(
            layers.Conv(self.num_classes, (size - 7) // 8 + 1, name=f"b{size}")(x)
            for size, _ in self.fields
        )


class TinyAnchorNet(TinyMultiScaleAnchorNet):
    """The same with the patches of 2022."""

    fields = (TinyMultiScaleAnchorNet.field,)


def drawn(model, size, seed=0):
    """Return variables that keep a network's signal alive; nothing is compiled."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        kind, fan_in = path[-1].key, np.prod(shape.shape[:-1])
        spread = {"kernel": (2 / fan_in) ** 0.5, "var": 0}.get(kind, 0.3)
        middle = float(kind in ("scale", "var"))
        return np.float32(middle + spread * rng.standard_normal(shape.shape))

    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with jax.disable_jit():  # traced in line: half the time
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map_with_path(leaf, shapes)


@pytest.fixture
def tiny(monkeypatch):
    """Register the network as `tiny`."""
    monkeypatch.setitem(models.MODELS, "tiny", (Tiny, {}))


def config(data_dir, **changes):
    """Return a training config: `tiny` on `plates/small`, eight steps of 16 images."""
    config = common.get_config()
    config.data.update(
        name="plates/small", data_dir=data_dir, augment="none", flip=False, resize=0
    )
    config.train_split = "train"
    config.calibration_split = "calibration"
    config.test_split = "test"
    config.model, config.batch_size, config.epochs = "tiny", 16, 2.0
    config.log_every_steps, config.save_every_epochs = 2, 0.5
    config.update(changes)
    return config
