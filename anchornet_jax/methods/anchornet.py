"""Sequential inference: the glance, then one patch after another (2022, Sec. 3.4).

Here every image runs through all steps, which gives the exit table that thresholds are
fitted to; leaving early for real is another module's task.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax.methods import patches, views
from anchornet_jax.models import Network, multiply_adds
from anchornet_jax.runtime import parallel

NETWORKS = ("anchornet", "glance", "patches")  # members of a `Sequence`
FUSE = ("logits", "probabilities")


class Sequence(NamedTuple):
    """The three networks of the method, and how many inputs they see.

    Attributes:
      anchornet: selects the patches.
      glance: sees the resized image.
      patches: sees each patch.
      inputs: T, the glance and T - 1 patches.
      iou_threshold: of the selection.
      fuse: what is summed over inputs: `logits` as the authors do, or `probabilities`
        as Algorithm 1 can be read.
    """

    anchornet: Network
    glance: Network
    patches: Network
    inputs: int
    iou_threshold: float
    fuse: str = "logits"

    @property
    def patch_size(self) -> int:
        """Return the side in pixels at which glance and patches are seen, P."""
        return self.anchornet.model.field.size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the sides in pixels of the patches that each branch localises."""
        return tuple(field.size for field in self.anchornet.model.fields)

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes, numbers where no network knows them."""
        for name in NETWORKS:
            if "classes" in getattr(self, name).metadata:
                return getattr(self, name).metadata["classes"]
        return [str(n) for n in range(self.anchornet.model.num_classes)]

    def variables(self) -> dict:
        """Return the variables of all networks, as the steps below take them."""
        return {name: getattr(self, name).variables for name in NETWORKS}

    def macs(self, image_size: int) -> list[int]:
        """Return the multiply-adds of leaving after 1 ... T inputs.

        An image that leaves after the glance never pays for AnchorNet.
        """
        localizer = multiply_adds.model_macs(self.anchornet.model, image_size)
        glance, patch = (
            multiply_adds.model_macs(network.model, self.patch_size)
            for network in (self.glance, self.patches)
        )
        later = (glance + localizer + t * patch for t in range(1, self.inputs))
        return [glance, *later]


def check(sequence: Sequence) -> Sequence:
    """Return the sequence if its parts fit together.

    Raises:
      ValueError: for class names that differ, fewer than two inputs or an unknown way
        to fuse.
    """
    classes = {
        name: getattr(sequence, name).metadata.get("classes", sequence.classes)
        for name in NETWORKS
    }
    counts = {name: getattr(sequence, name).model.num_classes for name in classes}
    if any(names != sequence.classes for names in classes.values()) or any(
        count != len(sequence.classes) for count in counts.values()
    ):
        raise ValueError(
            "the networks were trained for different classes: "
            + ", ".join(
                f"{name}: {counts[name]}, named {names[:3]} …"
                for name, names in classes.items()
            )
        )
    if sequence.inputs < 2:
        raise ValueError(
            f"`inputs` is {sequence.inputs}; allowed is 2 or more, glance and patches"
        )
    if sequence.fuse not in FUSE:
        raise ValueError(f"`fuse` is {sequence.fuse!r}; choose one of {FUSE}")
    return sequence


def check_images(sequence: Sequence, image_size: int) -> None:
    """Refuse images, patches and thresholds that cannot be, without compiling.

    Raises:
      ValueError: for images smaller than the receptive field, more patches than can be
        found, or an IoU threshold outside [0, 1].
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8)
    jax.eval_shape(
        lambda variables, images: localize(sequence, variables, images),
        sequence.variables(),
        images,
    )


def glance_logits(sequence: Sequence, variables, images: jax.Array) -> jax.Array:
    """Classify the resized image: uint8 [B, H, W, 3] to logits [B, N]."""
    small = patches.resize(views.normalise(images), sequence.patch_size)
    return sequence.glance.model.apply(variables["glance"], small)[0]


def patch_logits(
    sequence: Sequence,
    variables,
    images: jax.Array,
    corners: jax.Array,
    branch: jax.Array,
    rows: jax.Array | None = None,
) -> jax.Array:
    """Classify patches: uint8 [M, H, W, 3] and corners [B, K, 2] to [B, K, N].

    Patches have the size of the localiser's branch [B] and are brought to `patch_size`.
    `rows` [B] are the images of the corners, by default one after the other.
    """
    pixels = patches.crop_scales(
        images, corners, branch, sequence.sizes, sequence.patch_size, rows
    )
    flat = views.normalise(pixels.reshape(-1, *pixels.shape[2:]))
    logits, _ = sequence.patches.model.apply(variables["patches"], flat)
    return logits.reshape(*corners.shape[:2], -1)


def localize(sequence: Sequence, variables, images: jax.Array) -> views.Localization:
    """Find the T - 1 patches of each image."""
    return views.localize(
        sequence.anchornet.model,
        variables["anchornet"],
        images,
        k=sequence.inputs - 1,
        iou_threshold=sequence.iou_threshold,
    )


def decide(
    logits: jax.Array, valid: jax.Array, fuse: str
) -> tuple[jax.Array, jax.Array]:
    """Return confidence and class after each input (2022, Algorithm 1).

    Args:
      logits: [B, T, N] of each input alone.
      valid: [B, T], False where an image has no such patch: nothing is added there.
      fuse: see `Sequence`. Summed probabilities are divided by their number, so that
        a confidence is at most 1.

    Returns:
      confidence [B, T] and predicted class [B, T] int32.
    """
    weights = valid[..., None].astype(jnp.float32)
    if fuse == "logits":
        total = jax.nn.softmax(jnp.cumsum(logits * weights, axis=1))
    else:
        total = jnp.cumsum(jax.nn.softmax(logits) * weights, axis=1)
        total = total / jnp.cumsum(weights, axis=1)
    return total.max(-1), total.argmax(-1).astype(jnp.int32)


def make_table_step(sequence: Sequence, *, random: bool, seed: int):
    """Return the step that fills the exit table, to be mapped.

    Args:
      sequence: the method.
      random: also classify random patches in place of AnchorNet's (2022, Table 3).
      seed: of the random patches.

    Returns:
      `step(variables, batch)` for uint8 images `batch["image"]` [b, H, W, 3]; a dict of
      `confidence` and `predicted` [b, T], the same with `random_` before it if asked
      for, `anchornet` [b] its class, `heatmap` [b, G, G], `corners` [b, K, 2],
      `valid` [b, K] and `size` [b] int32, the patches' side in pixels. Random patches
      have the same size.
    """

    def step(variables, batch):
        images = batch["image"]
        found = localize(sequence, variables, images)
        first = glance_logits(sequence, variables, images)[:, None]
        seen = jnp.ones((len(images), 1), bool)
        size = jnp.array(sequence.sizes)[found.branch]

        def run(corners, valid, prefix):
            rest = patch_logits(sequence, variables, images, corners, found.branch)
            confidence, predicted = decide(
                jnp.concatenate([first, rest], 1),
                jnp.concatenate([seen, valid], 1),
                sequence.fuse,
            )
            return {f"{prefix}confidence": confidence, f"{prefix}predicted": predicted}

        result = run(found.corners, found.valid, "")
        if random:
            keys = parallel.image_keys(jax.random.key(seed), len(images))
            corners = views.random_corners(
                keys, *images.shape[1:3], size, sequence.inputs - 1
            )
            result |= run(corners, jnp.ones(corners.shape[:2], bool), "random_")
        return result | {
            "anchornet": found.logits.argmax(-1),
            "heatmap": found.heatmap,
            "corners": found.corners,
            "valid": found.valid,
            "size": size,
        }

    return step


def make_trace(sequence: Sequence):
    """Return the function that runs all steps on a few images, for pictures of them.

    Returns:
      `trace(images, rule)` for uint8 [B, H, W, 3] and a `stopping.Rule`: NumPy arrays
      as `pictures.examples` takes them, without labels.
    """
    step = jax.jit(make_table_step(sequence, random=False, seed=0))
    variables = jax.device_put(sequence.variables())

    def trace(images, rule):
        found = jax.device_get(step(variables, {"image": images}))
        return found | {
            "image": np.asarray(images),
            "exit": rule.exits(found["confidence"]),
            "patch_size": sequence.patch_size,
        }

    return trace
