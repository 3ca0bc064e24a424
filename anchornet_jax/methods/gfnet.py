"""GFNet: glance at the whole image, then look where a policy says.

Glance and Focus (Wang et al., 2020), Sec. 3.1. The policy runs at the start of a step, on
the map that the step before left, so that an image that leaves does not pay for it.

    method = GFNet({"glance": ..., "patch": ..., "classifier": ..., "policy": ...})
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from anchornet_jax.methods import patches, preprocessing
from anchornet_jax.methods.method import Regions, Step
from anchornet_jax.models import Network, gfnet, multiply_adds, ranet

ROLES = ("glance", "patch", "classifier", "policy")
RESIZES = ("bicubic", "bilinear")


@dataclasses.dataclass(frozen=True, eq=False)
class GFNet:
    """A glance and patches, one after the other.

    Attributes:
      networks: by role: the encoders `glance` and `patch`, the `classifier` of all that
        was seen, the `policy`.
      inputs: T, the glance and T - 1 patches.
      patch_size: side P of both in pixels.
      resize: how the glance is made, "bicubic" or "bilinear".
      own_head: the glance encoder's own head gives the first answer, as in the released
        RegNets, while the classifier takes the glance all the same. A cascade has no
        other first answer.
    """

    networks: dict[str, Network]
    inputs: int = 5
    patch_size: int = 96
    resize: str = "bicubic"
    own_head: bool = False

    def __post_init__(self):
        most = getattr(self._model("classifier"), "most", self.inputs)
        if not 1 <= self.inputs <= most:
            raise ValueError(f"`inputs` is {self.inputs}; allowed is 1 to {most}")
        if self.patch_size < 2:
            raise ValueError(f"`patch_size` is {self.patch_size}; allowed is 2 or more")
        if self.resize not in RESIZES:
            raise ValueError(f"`resize` is {self.resize!r}; choose one of {RESIZES}")

    @staticmethod
    def roles(**_) -> tuple[str, ...]:
        """Return the roles of its networks."""
        return ROLES

    @property
    def arguments(self) -> dict:
        """Return what makes the same method of the same networks."""
        names = ("inputs", "patch_size", "resize", "own_head")
        return {name: getattr(self, name) for name in names}

    sources = ()  # answers are no sums

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """Return the glance and the patches; a cascade's patches differ by step."""
        roles = ("patch", "classifier", "policy")
        if self._cascades:
            later = [
                Step(f"focus {t}", roles, functools.partial(self._focus, step=t + 1))
                for t in range(1, self.inputs)
            ]
        else:
            later = [Step("focus", roles, self._focus)] * (self.inputs - 1)
        return (Step("glance", ("glance", "classifier"), self._glance), *later)

    def start(self, count: int, image_size: int) -> dict:
        """Return room for the last map, both memories and the places."""
        if image_size < self.patch_size:
            raise ValueError(
                f"images have {image_size} pixels a side; patches of {self.patch_size} "
                "need at least as many"
            )
        pooled, maps, _ = self._shapes
        memory = self._model("classifier").memory(pooled.shape[-1], self.inputs)
        return {
            "map": jnp.zeros((count, *maps.shape[1:]), maps.dtype),
            "memory": jnp.zeros((count, memory), jnp.float32),
            "policy": jnp.zeros((count, self._model("policy").hidden), jnp.float32),
            "boxes": jnp.full((count, self.inputs, 4), -1, jnp.int32),
        }

    def macs(self, image_size: int) -> list[int]:
        """Return what each step takes; the policy belongs to the step that it opens."""
        state = jax.eval_shape(lambda: self.start(1, image_size))
        glance = self._encoder_macs("glance", self.own_head or self._cascades)
        patch = self._encoder_macs("patch", False)
        found = [glance + self._classifier_macs(1)]
        policy = self._model("policy")
        own = multiply_adds.macs(
            policy.apply,
            self.networks["policy"].variables,
            state["map"],
            state["policy"],
        )
        own -= policy.hidden  # nobody reads the critic's value
        for t in range(2, self.inputs + 1):
            found.append(own + patch + self._classifier_macs(t))
        return found

    def input_sizes(self, image_size: int) -> dict[str, int]:
        """Return what the encoders see."""
        return dict.fromkeys(ROLES[:2], self.patch_size)

    def regions(self, state, image_size: int) -> Regions:
        """Return where it looked; the glance looks at nothing of its own."""
        return Regions(state["boxes"])

    def _model(self, role):
        return self.networks[role].model

    @property
    def _cascades(self):
        return hasattr(self._model("classifier"), "most")

    @functools.cached_property
    def _shapes(self):
        """Return the shapes of an image's features, map and logits."""
        images = jax.ShapeDtypeStruct(
            (1, self.patch_size, self.patch_size, 3), "float32"
        )
        model, variables, _ = self.networks["patch"]
        return jax.eval_shape(functools.partial(gfnet.encode, model), variables, images)

    def _encoder_macs(self, role, answers):
        """Return an encoder's multiply-adds, without its head unless that answers."""
        model, (pooled, _, logits) = self._model(role), self._shapes
        head = 0 if answers else pooled.shape[-1] * logits.shape[-1]
        return multiply_adds.model_macs(model, self.patch_size) - head

    def _classifier_macs(self, step):
        model, variables, _ = self.networks["classifier"]
        features = self._shapes[0].shape[-1]
        if not self._cascades:
            given = (jnp.zeros((1, features)), jnp.zeros((1, model.hidden)))
            return multiply_adds.macs(model.apply, variables, *given)
        if step == 1:
            return 0
        run = functools.partial(model.apply, step=step)
        return multiply_adds.macs(run, variables, jnp.zeros((1, step * features)))

    def _glance(self, variables, pixels, rows, state, t):
        model = self._model("glance")
        images = preprocessing.normalise(patches.take(pixels, rows), model)
        if self.resize == "bicubic":
            images = patches.resize(images, self.patch_size)
        else:
            images = ranet.resize(images, (self.patch_size,) * 2)
        pooled, maps, own = gfnet.encode(model, variables["glance"], images)
        if self._cascades:
            memory = state["memory"].at[:, : pooled.shape[-1]].set(pooled)
            logits = own
        else:
            memory, logits = self._model("classifier").apply(
                variables["classifier"], pooled, state["memory"]
            )
            logits = own if self.own_head else logits
        return {**state, "map": maps, "memory": memory}, logits.astype(jnp.float32)

    def _focus(self, variables, pixels, rows, state, t, *, step=None):
        hidden, actions, _ = self._model("policy").apply(
            variables["policy"], state["map"], state["policy"]
        )
        at = gfnet.corners(actions, pixels.shape[1], self.patch_size)
        images = patches.crop(pixels, at[:, None], self.patch_size, rows)[:, 0]
        model = self._model("patch")
        images = preprocessing.normalise(images, model)
        pooled, maps, _ = gfnet.encode(model, variables["patch"], images)
        memory, logits = self._answer(variables, pooled, state["memory"], step)
        box = jnp.concatenate([at, at + self.patch_size], -1)
        boxes = state["boxes"].at[jnp.arange(at.shape[0]), t].set(box)
        left = {"map": maps, "memory": memory, "policy": hidden, "boxes": boxes}
        return {**state, **left}, logits.astype(jnp.float32)

    def _answer(self, variables, pooled, memory, step):
        model, own = self._model("classifier"), variables["classifier"]
        if not self._cascades:
            return model.apply(own, pooled, memory)
        size = pooled.shape[-1]
        memory = memory.at[:, (step - 1) * size : step * size].set(pooled)
        return memory, model.apply(own, memory[:, : step * size], step)
