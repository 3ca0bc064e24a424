"""AnchorNet's sequence on images of any size, which stay in host memory.

The glance sees the whole image. Then the localiser looks coarse to fine: first at a few
squares that together cover the image, shrunk to `view` pixels, then inside the most
promising patches again, at a finer scale each time, until a pixel of the view is one of
the image. There the patches are chosen, and cut from the image pixel for pixel. So the
cost does not grow with the image: a step of the localiser zooms in by up to view / patch
= 2.36, and `zooms` of them reach every pixel of an image 2.36 ** zooms times as large as
the first squares show it.

Every view has one shape, that of the images the networks were trained on. So images of
any size and form share a launch, nothing compiles per image, and nothing is padded. An
image of `view` x `view` pixels is one view at scale 1: with `zooms=0` the answers are those
of `anchornet.AnchorNet`.

A location of a view sees `patch * scale` pixels of the image, `stride * scale` after
those of the location before, where `scale` is the side of the view's box over `view`: the
arithmetic of Localizing Semantic Patches (2022), Eq. 1, at every level. The classes are
told apart by the mean over all views of a level, as if they were one map, and all views
show the evidence for the one predicted class (Eq. 2).

    method = LargeAnchorNet({"localizer": ..., "glance": ..., "patch": ...}, zooms=3)
    classifier = engine.Classifier(method, rule, batch_size=1, in_flight=1)
    classifier.classify([photo, another])  # uint8 [H, W, 3], of any sizes
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax.methods import localize, patches, preprocessing
from anchornet_jax.methods.anchornet import PATCHES, AnchorNet
from anchornet_jax.methods.method import Regions, Step
from anchornet_jax.methods.pyramid import Pyramid
from anchornet_jax.models import multiply_adds


@dataclasses.dataclass(frozen=True, eq=False)
class LargeAnchorNet(AnchorNet):
    """The sequential classifier on large images.

    Attributes:
      networks: as of `AnchorNet`, trained on images of `view` pixels.
      inputs: T, the glance and T - 1 patches.
      iou_threshold: of the selection, at every level.
      fuse: as of `AnchorNet`.
      localizer: as of `AnchorNet`; with patches of one size.
      view: side in pixels of what the localiser sees at once.
      views: of a level, R.
      zooms: levels after the first.
    """

    view: int = 224
    views: int = 4
    zooms: int = 2

    chosen = 0  # the views of a level depend on the choices of the level before
    features = ("agreement",)  # views have no common heatmap
    sources = ()  # no step adds the localiser's answer, so there is nothing to weigh

    def __post_init__(self):
        super().__post_init__()
        for name, only in {"vote": False, "heatmap": "predicted", "size": 0}.items():
            if getattr(self, name) != only:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}; on large images allowed is "
                    f"{only!r}"
                )
        if len(self.fields) > 1:
            raise ValueError(
                f"`networks.localizer` has patches of {self.sizes} pixels; allowed is "
                "one size"
            )
        for name, least in {"view": self.patch_size, "views": 1, "zooms": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}; allowed is {least} or more"
                )

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the glance, the levels of localisation, and the patches."""
        own = ("localizer",) if "localizer" in self.networks else ()
        glance = Step("glance", ("glance",), self._glance, False, self._cut_glance)
        look = Step("look", own, self._look, False, self._cut_look)
        patch = Step("patch", ("patch",), self._patch, False, self._cut_patch)
        return (glance, *(1 + self.zooms) * (look,), *(self.inputs - 1) * (patch,))

    def hold(self, image: np.ndarray) -> Pyramid:
        """Return an image as it is kept in host memory while it is in flight."""
        return Pyramid(image)

    def start(self, count: int, image_size: int = 0) -> dict:
        """Return nothing seen, nothing asked for; `image_size` does not matter."""
        names = next(iter(self.networks.values())).model.num_classes
        asked = max(self.views, self.inputs - 1)
        return {
            "total": jnp.zeros((count, 1, names), jnp.float32),
            "seen": jnp.zeros((count, 1), jnp.float32),
            "shape": jnp.zeros((count, 2), jnp.int32),
            "ask": jnp.zeros((count, asked, 4), jnp.int32),
            "said": self._nothing_said(count),
        }

    def macs(self, image_size: int = 0) -> list[int]:
        """Return the multiply-adds of each step; they are the same for any image."""
        size = self.input_sizes()
        once = {
            role: multiply_adds.model_macs(network.model, size[role])
            for role, network in self.networks.items()
        }
        looks = (1 + self.zooms) * [self.views * once.get("localizer", 0)]
        return [once["glance"], *looks, *(self.inputs - 1) * [once["patch"]]]

    def input_sizes(self, image_size: int = 0) -> dict[str, int]:
        """Return the side of a view for the localiser, a patch's for the others."""
        return super().input_sizes(self.view)

    def regions(self, state, image_size: int = 0) -> Regions:
        """Return the whole image at the glance and the patches, at their exits."""
        shape, patch = state["shape"], state["ask"][:, : self.inputs - 1]
        glance = jnp.concatenate([jnp.zeros_like(shape), shape], -1)[:, None]
        looks = jnp.full((len(shape), 1 + self.zooms, 4), -1, jnp.int32)
        patch = jnp.where(_exists(patch)[..., None], patch, -1)
        return Regions(jnp.concatenate([glance, looks, patch], 1))

    def covering(self, height: int, width: int) -> np.ndarray:
        """Return the boxes [R, 4] of the first level: as small as can cover the image.

        Squares on a grid that overlap by what a patch needs, so that every patch of the
        image is in one of them. An image longer than R squares are is seen compressed.
        Boxes that are not needed are all 0.
        """
        field = self.model.field
        shared = (field.size - field.stride) / self.view  # of a box's side
        side = lambda length, n: length / (n - (n - 1) * shared)
        grids = [
            (max(side(height, r), side(width, c)), r, c)
            for r in range(1, self.views + 1)
            for c in range(1, self.views // r + 1)
        ]
        enough = [grid for grid in grids if grid[0] <= self.view]
        longest, *grid = (
            min(enough, key=lambda grid: grid[1] * grid[2]) if enough else min(grids)
        )
        h, w = (min(int(np.ceil(longest)), n) for n in (height, width))
        tops, lefts = (
            np.linspace(0, whole - own, n).round().astype(int)
            for whole, own, n in zip((height, width), (h, w), grid)
        )
        boxes = np.zeros((self.views, 4), np.int32)
        for number, (top, left) in enumerate(itertools.product(tops, lefts)):
            boxes[number] = top, left, top + h, left + w
        return boxes

    def seen(self, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return what each location of the views of boxes [b, R, 4] sees.

        Returns:
          Boxes [b, R, G, G, 4] float32, (top, left, bottom, right) in pixels of the
          image, and the scale [b, R, 2] of each view, pixels of the image per its own.
        """
        field = self.model.field
        scale = (boxes[..., 2:] - boxes[..., :2]).astype(jnp.float32) / self.view
        lattice = map(jnp.arange, field.grid(self.view, self.view))
        places = jnp.stack(jnp.meshgrid(*lattice, indexing="ij"), -1) * field.stride
        wide = lambda values: values[:, :, None, None]  # [b, R, 1, 1, 2]
        low = wide(boxes[..., :2]) + places[None, None] * wide(scale)
        size = jnp.broadcast_to(field.size * wide(scale), low.shape)
        return jnp.concatenate([low, low + size], -1), scale

    def observe(self, state, logits: jax.Array) -> dict[str, jax.Array]:
        """Return what rules may see of a step: the share of inputs that agree with it."""
        return {"agreement": self._agreement(state, logits)}

    def _cut_glance(self, image, ask, t):
        whole = (0, 0, *image.shape)
        return {"view": image.view(whole, self.view), "shape": np.int32(image.shape)}

    def _cut_look(self, image, ask, t):
        boxes = self.covering(*image.shape) if t == 1 else ask[: self.views]
        views = [image.view(box, self.view) for box in boxes]
        shape = np.int32(image.shape)
        return {"views": np.stack(views), "boxes": boxes, "shape": shape}

    def _cut_patch(self, image, ask, t):
        box = ask[t - 2 - self.zooms]
        exists = np.float32([box[2] > box[0]])
        return {"view": image.view(box, self.patch_size), "exists": exists}

    def _glance(self, variables, pixels, rows, state, t):
        state = {**state, "shape": pixels["shape"]}
        return super()._glance(variables, pixels["view"], rows, state, t)

    def _look(self, variables, pixels, rows, state, t):
        boxes, shape = pixels["boxes"], pixels["shape"]
        valid = _exists(boxes)
        maps = self._maps(variables, pixels["views"], valid)
        maps = jnp.where(valid[..., None, None], maps, jnp.nan)
        seen, scale = self.seen(boxes)
        flat = lambda values: values.reshape(len(boxes), -1, *values.shape[4:])
        # The scale of each location's view, the larger of its two sides.
        scales = jnp.broadcast_to(scale.max(-1)[..., None, None], maps.shape)
        best, exist = patches.select_boxes(
            flat(maps),
            flat(seen),
            k=state["ask"].shape[1],
            iou_threshold=self.iou_threshold,
        )
        take = lambda values: jnp.take_along_axis(values, best, 1)
        chosen = jnp.take_along_axis(flat(seen), best[..., None], 1)
        left = 1 + self.zooms - t  # levels after this one [b]
        ask = jnp.where(
            (left > 0)[:, None, None],
            self._closer(chosen, take(flat(scales)), shape, left),
            chosen.round().astype(jnp.int32),
        )
        ask = jnp.where(exist[..., None], ask, 0)
        nothing = jnp.zeros((len(boxes), 1))
        return self._answer({**state, "ask": ask}, "localizer", 0.0, nothing, t)

    def _maps(self, variables, views, valid):
        """Return the evidence [b, R, G, G] for the class that all views together say."""
        b, count = valid.shape
        flat = views.reshape(b * count, *views.shape[2:])
        if "localizer" not in variables:
            _, _, (maps,) = localize.look(self.model, None, flat)
        else:
            own = variables["localizer"]
            _, out = self.model.apply(own, preprocessing.normalise(flat, self.model))
            logits, _ = self.model.classify(own, out)
            logits = logits.reshape(b, count, -1) * valid[..., None]
            classes = jnp.repeat(logits.sum(1).argmax(-1), count)
            (maps,) = self.model.contributions(own, out, classes)
        return maps.reshape(b, count, *maps.shape[1:])

    def _closer(self, chosen, scale, shape, left):
        """Return the boxes [b, A, 4] of the next level, about those chosen [b, A, 4].

        Every level zooms in by the same factor, so that the last one shows the image
        pixel for pixel; by no more than keeps what was chosen in view.
        """
        steps = jnp.maximum(left, 1)[:, None].astype(jnp.float32)
        zoom = jnp.minimum(scale ** (1 / steps), self.view / self.patch_size)
        side = (self.view * jnp.maximum(scale / zoom, 1))[..., None]  # [b, A, 1]
        shape = shape[:, None]  # [b, 1, 2]
        side = jnp.minimum(side.round(), shape).astype(jnp.int32)
        centre = (chosen[..., :2] + chosen[..., 2:]) / 2
        corner = (centre - side / 2).round().astype(jnp.int32)
        corner = jnp.clip(corner, 0, shape - side)
        return jnp.concatenate([corner, corner + side], -1)

    def _patch(self, variables, pixels, rows, state, t):
        model = self.networks["patch"].model
        patch = preprocessing.normalise(pixels["view"], model)
        logits, _ = model.apply(variables["patch"], patch)
        place = PATCHES + t - 2 - self.zooms
        state = self._say(state, place, logits, pixels["exists"])
        return self._answer(state, "patch", logits, pixels["exists"], t)


def _exists(boxes):
    """Say of boxes [..., 4] whether they are not empty."""
    return boxes[..., 2] > boxes[..., 0]
