"""AnchorNet's sequence: a glance, then one localised patch after another.

Localizing Semantic Patches (2022), Sec. 3.4, Algorithm 1. The localiser of 2020 and those
that learned nothing are the same method with another localiser. An image that leaves at
the glance never pays for the localiser: the step after it looks for the patches and
classifies the first.

Three things go beyond the paper, and are off unless asked for. The localiser has classified
the whole image by the time that it has localised; with `vote` its answer counts, and has
an exit of its own before the first patch. With `weights` the sum is a weighted one. And
rules may see whether the networks agree, and how clear the heatmap is (`observe`).

    method = AnchorNet({"localizer": ..., "glance": ..., "patch": ...}, inputs=5)
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax.methods import localize, patches, preprocessing
from anchornet_jax.methods.method import Regions, Step
from anchornet_jax.models import Network, multiply_adds

FUSE = ("logits", "probabilities")
LEARNED = "network"  # the localiser that is one of the networks
# Places of what each input says; the last is the first patch's.
GLANCE, LOCALIZER, PATCHES = 0, 1, 2


@dataclasses.dataclass(frozen=True, eq=False)
class AnchorNet:
    """The sequential classifier.

    Attributes:
      networks: `localizer` selects the patches, unless a heuristic does; `glance` sees
        the resized image and `patch` each patch.
      inputs: T, the glance and T - 1 patches.
      iou_threshold: of the selection.
      fuse: what is summed over inputs: `logits` as the authors do, or `probabilities`
        as Algorithm 1 can be read.
      localizer: `network`, or a key of `localize.HEURISTICS`.
      heatmap: of the network that localises, a key of `localize.HEATMAPS`.
      size: side of the patches in pixels; 0: what a location of the localiser sees. A
        BagNet or a Saccader so chooses among the patches that AnchorNet has.
      vote: whether the localiser's logits are summed too; then it is a step.
      weights: [exits][sources] of the glance's, the localiser's (with `vote`) and the
        summed patches' logits at each exit; empty for plain sums. See `fusion.fit`.
    """

    networks: dict[str, Network]
    inputs: int = 5
    iou_threshold: float = 0.3
    fuse: str = "logits"
    localizer: str = LEARNED
    heatmap: str = "predicted"
    size: int = 0
    vote: bool = False
    weights: Sequence[Sequence[float]] = ()

    features = ("agreement", "peak", "spread")
    chosen = 2  # steps after which the patches are

    def __post_init__(self):
        if self.inputs < 2:
            raise ValueError(
                f"`inputs` is {self.inputs}; allowed is 2 or more, glance and patches"
            )
        if self.fuse not in FUSE:
            raise ValueError(f"`fuse` is {self.fuse!r}; choose one of {FUSE}")
        localize.check_heatmap(self.heatmap)
        if self.size < 0 or self.size == 1:
            raise ValueError(
                f"`size` is {self.size}; allowed are 0 (what the localizer sees) and 2 "
                "or more pixels"
            )
        if self.vote and self.localizer != LEARNED:
            raise ValueError(
                f"`vote` is True; `localizer` is {self.localizer!r}, which knows no classes"
            )
        if len(self.weights):
            self._check_weights()

    def _check_weights(self):
        shape = len(self.sources), len(set(self.sources))
        found = np.shape(self.weights) if _is_matrix(self.weights) else None
        if found != shape or not np.isfinite(self.weights).all():
            raise ValueError(
                f"`weights` is {self.weights}; allowed are finite numbers, {shape[0]} "
                f"exits of {shape[1]} sources, or none for plain sums"
            )
        if self.fuse != "logits":
            raise ValueError(
                f"`fuse` is {self.fuse!r}; with `weights` allowed is 'logits'"
            )

    @staticmethod
    def roles(localizer: str = LEARNED, **_) -> tuple[str, ...]:
        """Return the roles of the networks that a localiser needs.

        Raises:
          ValueError: for an unknown localiser.
        """
        known = (LEARNED, *localize.HEURISTICS)
        if localizer not in known:
            raise ValueError(f"`localizer` is {localizer!r}; choose one of {known}")
        own = ("localizer",) if localizer == LEARNED else ()
        return (*own, "glance", "patch")

    @property
    def arguments(self) -> dict:
        """Return all but the networks."""
        names = (f.name for f in dataclasses.fields(self) if f.name != "networks")
        weights = [list(map(float, row)) for row in self.weights]  # as JSON holds them
        return {name: getattr(self, name) for name in names} | {"weights": weights}

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the role of the network whose logits each step adds."""
        own = ("localizer",) if self.vote else ()
        return ("glance", *own, *(self.inputs - 1) * ("patch",))

    @property
    def model(self):
        """Return what localises: a network's module, or a heuristic."""
        learned = self.localizer == LEARNED
        own = self.networks["localizer"].model if learned else None
        return localize.of_size(own or localize.Heuristic(self.localizer), self.size)

    @property
    def patch_size(self) -> int:
        """Return the side in pixels at which glance and patches are seen, P."""
        return self.model.field.size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the sides in pixels of the patches that each branch localises."""
        return tuple(field.size for field in self.model.fields)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the glance, localisation with the first patch, and the other patches.

        With `vote` localisation is a step without a patch.
        """
        looks = tuple(r for r in self.roles(self.localizer) if r != "glance")
        glance = Step("glance", ("glance",), self._glance)
        patch = Step("patch", ("patch",), self._patch)
        if self.vote:
            localize = Step("localize", ("localizer",), self._vote)
            return (glance, localize, *(self.inputs - 1) * (patch,))
        look = Step("look", looks, self._look)
        return (glance, look, *(self.inputs - 2) * (patch,))

    def start(self, count: int, image_size: int) -> dict:
        """Return nothing seen: no evidence, no patches."""
        k = self.inputs - 1
        names = next(iter(self.networks.values())).model.num_classes
        grid = [max(n) for n in zip(*(f.grid(*2 * [image_size]) for f in self.fields))]
        return {
            "total": jnp.zeros((count, self._sums, names), jnp.float32),
            "seen": jnp.zeros((count, 1), jnp.float32),
            "corners": jnp.zeros((count, k, 2), jnp.int32),
            "valid": jnp.zeros((count, k), bool),
            "branch": jnp.zeros(count, jnp.int32),
            "heatmap": jnp.full((count, *grid), jnp.nan, jnp.float32),
            "said": self._nothing_said(count),
        }

    @property
    def fields(self):
        """Return the size and stride of each branch's patches."""
        return self.model.fields

    def macs(self, image_size: int) -> list[int]:
        """Return the multiply-adds of each step; a heuristic localises for none."""
        size = self.input_sizes(image_size)
        glance, patch, localizer = (
            multiply_adds.model_macs(self.networks[role].model, size[role])
            if role in self.networks
            else 0
            for role in ("glance", "patch", "localizer")
        )
        if localizer:
            own = self.networks["localizer"].model
            localizer += localize.heatmap_macs(own, self.heatmap, image_size)
        if self.vote:
            return [glance, localizer, *(self.inputs - 1) * [patch]]
        return [glance, localizer + patch, *(self.inputs - 2) * [patch]]

    def input_sizes(self, image_size: int) -> dict[str, int]:
        """Return the image's side for the localiser, a patch's for the others."""
        return {
            role: image_size if role == "localizer" else self.patch_size
            for role in self.networks
        }

    def regions(self, state, image_size: int) -> Regions:
        """Return the whole image at the glance, then the patches, and the heatmap."""
        sizes, strides = (
            jnp.array(side)[state["branch"]] for side in zip(*self.fields)
        )  # [B]
        corners = state["corners"]
        patch = jnp.concatenate([corners, corners + sizes[:, None, None]], -1)
        patch = jnp.where(state["valid"][..., None], patch, -1)
        whole = jnp.array([0, 0, image_size, image_size], jnp.int32)
        wholes = 1 + self.vote  # the localiser sees the whole image as well
        glance = jnp.broadcast_to(whole[None, None], (corners.shape[0], wholes, 4))
        # Location (i, j) stands for the patch whose centre is i S + P / 2.
        first = (sizes - strides) / 2
        rows, columns = state["heatmap"].shape[1:]
        extent = [first, first, first + rows * strides, first + columns * strides]
        return Regions(
            jnp.concatenate([glance, patch.astype(jnp.int32)], 1),
            state["heatmap"],
            jnp.stack(extent, -1).astype(jnp.float32),
        )

    def observe(self, state, logits: jax.Array) -> dict[str, jax.Array]:
        """Return what rules may see of a step, {name: [b]}.

        `agreement` is the share of the inputs so far whose own class is the answer; the
        localiser's counts, if it knows classes. `peak` says by how many standard
        deviations the best location stands out of the heatmap, and `spread` how far apart
        those above its mean are, as a share of its side; both 0 before it is known.
        """
        return {
            "agreement": self._agreement(state, logits),
            **_shape(state["heatmap"]),
        }

    def choose(self, state, iou_threshold: float) -> dict:
        """Return a state after the patches were chosen, as with another threshold.

        What was said of the first patch stays: it is the heatmap's best in any case.
        """
        heatmap, k = state["heatmap"], self.inputs - 1
        found = [
            (heatmap, *patches.select(heatmap, one, k=k, iou_threshold=iou_threshold))
            for one in self.fields
        ]
        _, corners, valid = localize.choose(found, state["branch"])
        return {**state, "corners": corners, "valid": valid}

    def _nothing_said(self, count: int) -> jax.Array:
        """Return room for the class that each of glance, localiser and patches says."""
        return jnp.full((count, 1 + self.inputs), -1, jnp.int32)

    def _say(self, state, place, logits, exists) -> dict:
        """Keep the class that an input says, where it exists [b, 1]; `place` is [b]."""
        own = jnp.where(exists[:, 0] > 0, logits.argmax(-1), -1).astype(jnp.int32)
        said = state["said"].at[jnp.arange(own.shape[0]), place].set(own)
        return {**state, "said": said}

    def _agreement(self, state, logits):
        known = state["said"] >= 0
        agrees = known & (state["said"] == logits.argmax(-1)[:, None])
        return agrees.sum(-1) / jnp.maximum(known.sum(-1), 1)

    def _glance(self, variables, pixels, rows, state, t):
        model = self.networks["glance"].model
        small = patches.resize(patches.take(pixels, rows), self.patch_size)
        small = preprocessing.normalise(small, model)
        logits, _ = model.apply(variables["glance"], small)
        state = self._say(state, GLANCE, logits, _always(t))
        return self._answer(state, "glance", logits, _always(t), t)

    def _look(self, variables, pixels, rows, state, t):
        state, _ = self._localize(variables, pixels, rows, state)
        return self._patch(variables, pixels, rows, state, t)

    def _vote(self, variables, pixels, rows, state, t):
        state, logits = self._localize(variables, pixels, rows, state)
        return self._answer(state, "localizer", logits, _always(t), t)

    def _localize(self, variables, pixels, rows, state):
        found = localize.localize(
            self.model,
            variables.get("localizer"),
            patches.take(pixels, rows),
            k=self.inputs - 1,
            iou_threshold=self.iou_threshold,
            heatmap=self.heatmap,
        )
        own = {name: getattr(found, name) for name in ("corners", "valid", "branch")}
        state = {**state, **own, "heatmap": found.heatmap}
        if found.logits is not None:
            always = jnp.ones((found.branch.shape[0], 1))
            state = self._say(state, LOCALIZER, found.logits, always)
        return state, found.logits

    def _patch(self, variables, pixels, rows, state, t):
        place = jnp.arange(t.shape[0]), t - 1 - self.vote
        corner = state["corners"][place][:, None]  # [b, 1, 2]
        cut = patches.crop_scales(
            pixels, corner, state["branch"], self.sizes, self.patch_size, rows
        )
        model = self.networks["patch"].model
        patch = preprocessing.normalise(cut[:, 0], model)
        logits, _ = model.apply(variables["patch"], patch)
        exists = state["valid"][place][:, None].astype(jnp.float32)
        state = self._say(state, PATCHES + place[1], logits, exists)
        return self._answer(state, "patch", logits, exists, t)

    @property
    def _sums(self) -> int:
        """Return how many sums are kept: one, or one per source to be weighted."""
        return len(set(self.sources)) if len(self.weights) else 1

    def _answer(self, state, source, logits, exists, t):
        """Add the evidence of inputs that exist [b, 1]; answer by the sum so far."""
        if self.fuse == "probabilities":
            logits = jax.nn.softmax(logits)
        own = list(dict.fromkeys(self.sources)).index(source) if self._sums > 1 else 0
        total = state["total"].at[:, own].add(logits * exists)
        seen = state["seen"] + exists
        state = {**state, "total": total, "seen": seen}
        if self._sums > 1:
            weights = jnp.asarray(self.weights, jnp.float32)[t]  # [b, sources]
            return state, (weights[..., None] * total).sum(1)
        total = total[:, 0]
        return state, jnp.log(total / seen) if self.fuse == "probabilities" else total


def _shape(heatmap: jax.Array) -> dict[str, jax.Array]:
    """Return peak and spread of heatmaps [b, G, G], see `AnchorNet.observe`."""
    known = jnp.isfinite(heatmap)
    count = jnp.maximum(known.sum((1, 2)), 1)  # [b]
    mean = lambda values: values.sum((1, 2)) / count
    whole = lambda values: values[:, None, None]
    values = jnp.where(known, heatmap, 0.0)
    above = jnp.where(known, values - whole(mean(values)), 0.0)
    deviation = jnp.sqrt(mean(above**2))
    peak = _ratio(above.max((1, 2)), deviation)
    weight = jnp.maximum(above, 0.0)
    weight = _ratio(weight, whole(weight.sum((1, 2))))
    side = jnp.sqrt(count.astype(jnp.float32))
    spread = 0.0
    for axis, n in ((1, heatmap.shape[1]), (2, heatmap.shape[2])):
        place = jnp.expand_dims(jnp.arange(n, dtype=jnp.float32), (0, 3 - axis))
        centre = (weight * place).sum((1, 2))
        spread += (weight * (place - whole(centre)) ** 2).sum((1, 2))
    return {"peak": peak, "spread": jnp.sqrt(spread) / side}


def _ratio(above, below):
    """Return above / below, 0 where there is nothing to divide."""
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)


def _always(t):
    return jnp.ones((t.shape[0], 1), jnp.float32)


def _is_matrix(rows) -> bool:
    return len({len(row) for row in rows}) == 1
