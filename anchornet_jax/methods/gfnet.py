"""GFNet: glance at the whole image, then look where a policy says.

Glance and Focus (Wang et al., 2020), Sec. 3.1. The policy runs at the start of a step, on
the map that the step before left, so that an image that leaves does not pay for it.

    method = GFNet({"glance": ..., "patch": ..., "classifier": ..., "policy": ...})
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from anchornet_jax.methods import localize, patches, preprocessing
from anchornet_jax.methods.method import Regions, Step
from anchornet_jax.models import Network, gfnet, multiply_adds, ranet

ROLES = ("glance", "patch", "classifier", "policy")
RESIZES = ("bicubic", "bilinear")
PLACES = ("policy", "random")


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
      places: what says where to look; "random" needs no policy, and an image's own
        pixels decide: it is looked at in the same places in whatever batch it is.
    """

    networks: dict[str, Network]
    inputs: int = 5
    patch_size: int = 96
    resize: str = "bicubic"
    own_head: bool = False
    places: str = "policy"

    def __post_init__(self):
        most = getattr(self._model("classifier"), "most", self.inputs)
        if not 1 <= self.inputs <= most:
            raise ValueError(f"`inputs` is {self.inputs}; allowed is 1 to {most}")
        if self.patch_size < 2:
            raise ValueError(f"`patch_size` is {self.patch_size}; allowed is 2 or more")
        if self.resize not in RESIZES:
            raise ValueError(f"`resize` is {self.resize!r}; choose one of {RESIZES}")
        if self.places not in PLACES:
            raise ValueError(f"`places` is {self.places!r}; choose one of {PLACES}")

    @staticmethod
    def roles(*, places: str = "policy", **_) -> tuple[str, ...]:
        """Return the roles of its networks."""
        return ROLES if places == "policy" else ROLES[:-1]

    @property
    def arguments(self) -> dict:
        """Return what makes the same method of the same networks."""
        names = ("inputs", "patch_size", "resize", "own_head", "places")
        return {name: getattr(self, name) for name in names}

    sources = ()  # answers are no sums

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """Return the glance and the patches; a cascade's patches differ by step."""
        roles = self.roles(places=self.places)[1:]
        if self._cascades:
            later = [
                Step(f"focus {t}", roles, functools.partial(self._focus, step=t))
                for t in range(1, self.inputs)
            ]
        else:
            later = [Step("focus", roles, self._focus)] * (self.inputs - 1)
        return (Step("glance", ("glance", "classifier"), self._glance), *later)

    def start(self, count: int, image_size: int) -> dict:
        """Return room for both memories, and for what says where to look and did."""
        if image_size < self.patch_size:
            raise ValueError(
                f"images have {image_size} pixels a side; patches of {self.patch_size} "
                "need at least as many"
            )
        own = {
            "memory": self.memory(count),
            "boxes": jnp.full((count, self.inputs, 4), -1, jnp.int32),
        }
        if self.places == "random":
            return own | {"actions": jnp.zeros((count, self.inputs, 2), jnp.float32)}
        maps = self._shapes[1]
        hidden = self._model("policy").hidden
        return own | {
            "map": jnp.zeros((count, *maps.shape[1:]), maps.dtype),
            "policy": jnp.zeros((count, hidden), jnp.float32),
        }

    def memory(self, count: int) -> jax.Array:
        """Return the classifier's memory [B, M] of `count` new images."""
        features = self._shapes[0].shape[-1]
        entries = self._model("classifier").memory(features, self.inputs)
        return jnp.zeros((count, entries), jnp.float32)

    def given(self) -> dict[str, tuple[jax.ShapeDtypeStruct, ...]]:
        """Return what each role's network is called with for one image, as shapes.

        The networks' variables may be None.
        """
        pooled, maps, _ = self._shapes
        features = pooled.shape[-1]
        row = lambda entries: jax.ShapeDtypeStruct((1, entries), jnp.float32)
        images = (_images(self.patch_size),)
        if self._cascades:
            seen = (row(2 * features),)
        else:
            seen = row(features), row(self._model("classifier").hidden)
        found = {"glance": images, "patch": images, "classifier": seen}
        if self.places == "policy":
            found["policy"] = maps, row(self._model("policy").hidden)
        return found

    def macs(self, image_size: int) -> list[int]:
        """Return what each step takes; the policy belongs to the step that it opens."""
        glance = self._encoder_macs("glance", self.own_head or self._cascades)
        patch = self._encoder_macs("patch", False)
        found = [glance + self._classifier_macs(1)]
        own = self._policy_macs() if self.places == "policy" else 0
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
        model, variables, _ = self.networks["patch"]
        images = _images(self.patch_size)
        if variables is None:  # before its training
            variables = jax.eval_shape(model.init, jax.random.key(0), images)
        encode = functools.partial(gfnet.encode, model)
        return jax.eval_shape(encode, variables, images)

    def _encoder_macs(self, role, answers):
        """Return an encoder's multiply-adds, without its head unless that answers."""
        model, (pooled, _, logits) = self._model(role), self._shapes
        head = 0 if answers else pooled.shape[-1] * logits.shape[-1]
        return multiply_adds.model_macs(model, self.patch_size) - head

    def _policy_macs(self):
        model, variables, _ = self.networks["policy"]
        own = multiply_adds.macs(model.apply, variables, *self.given()["policy"])
        return own - model.hidden  # nobody reads the critic's value

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

    def glance_pixels(self, pixels, rows=None) -> jax.Array:
        """Return whole images at the patches' size [b, P, P, 3], as `glance` sees them.

        Args:
          pixels: uint8 [M, H, W, 3].
          rows: [b] int32, which of them; all where it is None.
        """
        images = patches.take(pixels, rows)
        images = preprocessing.normalise(images, self._model("glance"))
        if self.resize == "bicubic":
            return patches.resize(images, self.patch_size)
        return ranet.resize(images, (self.patch_size,) * 2)

    def patch_pixels(self, pixels, actions, rows=None) -> tuple[jax.Array, jax.Array]:
        """Return the patches at actions [b, 2], as `patch` sees them, and their corners.

        Args:
          pixels: as of `glance_pixels`.
          actions: (row, column) in [0, 1].
          rows: as of `glance_pixels`.
        """
        at = gfnet.corners(actions, pixels.shape[1], self.patch_size)
        images = patches.crop(pixels, at[:, None], self.patch_size, rows)[:, 0]
        return preprocessing.normalise(images, self._model("patch")), at

    def answer(self, variables, pooled, own, memory, step: int):
        """Return the memory and logits [b, N] after features [b, F] of an input.

        Args:
          variables: the classifier's.
          pooled: the features.
          own: [b, N], the encoder's own logits, which are a cascade's first answer.
          memory: [b, M], before.
          step: place of the input, 0 for the glance; a recurrent classifier asks for
            none.
        """
        model = self._model("classifier")
        if not self._cascades:
            return model.apply(variables, pooled, memory)
        size = pooled.shape[-1]
        memory = memory.at[:, step * size : (step + 1) * size].set(pooled)
        if step == 0:
            return memory, own
        seen = memory[:, : (step + 1) * size]
        return memory, model.apply(variables, seen, step + 1)

    def _glance(self, variables, pixels, rows, state, t):
        images = self.glance_pixels(pixels, rows)
        model = self._model("glance")
        pooled, maps, own = gfnet.encode(model, variables["glance"], images)
        memory, logits = self.answer(
            variables["classifier"], pooled, own, state["memory"], 0
        )
        logits = own if self.own_head else logits
        if self.places == "random":
            keys = localize.own_keys(patches.take(pixels, rows))
            draw = lambda key: jax.random.uniform(key, (self.inputs, 2))
            left = {"actions": jax.vmap(draw)(keys)}
        else:
            left = {"map": maps}
        return {**state, **left, "memory": memory}, logits.astype(jnp.float32)

    def _focus(self, variables, pixels, rows, state, t, *, step=None):
        row = jnp.arange(t.shape[0])
        if self.places == "random":
            actions, left = state["actions"][row, t], {}
        else:
            hidden, actions, _ = self._model("policy").apply(
                variables["policy"], state["map"], state["policy"]
            )
            left = {"policy": hidden}
        images, at = self.patch_pixels(pixels, actions, rows)
        model = self._model("patch")
        pooled, maps, own = gfnet.encode(model, variables["patch"], images)
        memory, logits = self.answer(
            variables["classifier"], pooled, own, state["memory"], step
        )
        if self.places == "policy":
            left["map"] = maps
        box = jnp.concatenate([at, at + self.patch_size], -1)
        left["boxes"] = state["boxes"].at[row, t].set(box)
        return {**state, **left, "memory": memory}, logits.astype(jnp.float32)


def _images(size):
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
