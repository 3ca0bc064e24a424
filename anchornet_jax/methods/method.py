"""The protocol: how networks answer step by step, so that an image may leave early.

A method is a sequence of steps over some networks. After each step there is an exit: the
step says what the method answers so far, and a stopping rule decides which images leave. What an
image carries from one step to the next is the method's own business, its state. Exit
table, engine, export and pictures know this page alone; Algorithm 1 of *Localizing
Semantic Patches* (2022), Sec. 3.4, is one method among others.

    method = registry.load("anchornet", {"localizer": ..., "glance": ..., "patch": ...})
    table = make_table(method)
    found = table(variables(method), {"image": images[None]})  # on one device
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax.models import Network
from anchornet_jax.runtime import parallel


class Step(NamedTuple):
    """One program of a method. Equal steps are one program and share launches.

    Attributes:
      name: in exports, figures and logs; one for each distinct step.
      roles: the networks whose variables it reads.
      run: `run(variables, pixels, rows, state, t) -> (state, logits)` with `variables`
        {role: variables}, `pixels` uint8 [M, H, W, 3], `rows` [b] int32, the images of
        the state among the pixels, or None where they are all, in order; `state` of b
        images and `t` [b] int32, the place of the step in the method, 0-based. `logits`
        [b, N] float32 are the answer so far. A leaf of the state that comes back as the
        same object is not written to its slot.
      reads_pixels: False if it needs the state alone; then the engine may keep none.
      cut: of a method whose images stay in host memory, in all its steps: what the step
        reads of an image, cut there. `cut(image, ask, t)`, with `image` from the
        method's `hold`, `ask` int32 [A, 4] the leaf of that name of the image's state
        and the place `t`, returns a dict of NumPy arrays, of the same shapes whatever
        the image's. With a leading axis they are the `pixels` of `run`; `rows` is None.
    """

    name: str
    roles: tuple[str, ...]
    run: Callable
    reads_pixels: bool = True
    cut: Callable | None = None


class Regions(NamedTuple):
    """What a method has looked at, for pictures and to score with boxes.

    Attributes:
      boxes: [B, T, 4] int32, (top, left, bottom, right) in pixels of what each step
        looked at; all -1 where it looked at nothing of its own.
      heatmap: [B, G, G] float32 by which places were chosen, NaN beyond a smaller grid;
        None where there is none.
      extent: [B, 4] float32, (top, left, bottom, right) in pixels of the area whose
        equal cells the heatmap's values stand for, NaN included; None without heatmap.
    """

    boxes: jax.Array
    heatmap: jax.Array | None = None
    extent: jax.Array | None = None


class Method(Protocol):
    """What a method is asked for; one file in `methods/` for each.

    A method that lets rules see more than its answers has two things more: `features`,
    names, and `observe(state, logits)`, {name: [b] float32} of a state after a step.

    A method whose regions may be chosen anew has two things more: `chosen`, the number of
    steps after which they are, above 0, and `choose(state, iou_threshold)`, the state after
    these as it would be with that argument. Its argument `inputs` is the number of inputs;
    with fewer it has as many exits less.

    Attributes:
      networks: by role.
      steps: exit t comes after `steps[t]`.
      arguments: plain data from which, with the networks, `registry.create` makes the
        same method.
      sources: what each step adds to the answer, by role, where answers are sums of
        logits that an argument `weights` can weigh (`fusion`); empty where they are not.
    """

    networks: dict[str, Network]

    @property
    def steps(self) -> tuple[Step, ...]: ...

    @property
    def arguments(self) -> dict: ...

    @property
    def sources(self) -> tuple[str, ...]: ...

    def start(self, count: int, image_size: int):
        """Return the state of `count` new images: any pytree of arrays [count, ...]."""

    def macs(self, image_size: int) -> list[int]:
        """Return the multiply-adds of each step alone, as the method's paper counts."""

    def input_sizes(self, image_size: int) -> dict[str, int]:
        """Return the side in pixels of what each role's network sees."""

    def regions(self, state, image_size: int) -> Regions | None:
        """Return what was looked at, of a state after the last step; None: nothing."""


def distinct(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Return the different steps, in the order of their first place."""
    return tuple(dict.fromkeys(steps))


def exit_names(steps: tuple[Step, ...]) -> list[str]:
    """Name the exits after their steps; a step that repeats is numbered by its place."""
    return [
        step.name if steps.count(step) == 1 else f"{step.name} {t}"
        for t, step in enumerate(steps)
    ]


def variables(method: Method) -> dict:
    """Return the variables of all networks by role, as the steps take them."""
    return {role: network.variables for role, network in method.networks.items()}


def classes(method: Method) -> list[str]:
    """Return the names of the classes, numbers where no network knows them."""
    for network in method.networks.values():
        if "classes" in network.metadata:
            return network.metadata["classes"]
    (network, *_) = method.networks.values()
    return [str(n) for n in range(network.model.num_classes)]


def costs(method: Method, image_size: int) -> list[int]:
    """Return the multiply-adds up to each exit."""
    return np.cumsum(method.macs(image_size)).tolist()


def keeps_pixels(method: Method) -> bool:
    """Say whether a step after the first reads pixels."""
    return any(step.reads_pixels for step in method.steps[1:])


def on_host(method: Method) -> bool:
    """Say whether images stay in host memory, of any size, and steps read what is cut.

    Such a method has one thing more: `hold(image)`, which returns an image uint8
    [H, W, 3] as `Step.cut` takes it, or raises ValueError for anything else.
    """
    return method.steps[0].cut is not None


def cut(step: Step, held, asks, places, count: int = 0) -> dict[str, np.ndarray]:
    """Cut what a launch reads of images in host memory.

    Args:
      step: of a method on the host.
      held: b images from the method's `hold`.
      asks: of each image [A, 4].
      places: of each image, the place of the step.
      count: rows of the result, filled up with zeros; b where 0.
    """
    parts = [step.cut(*one) for one in zip(held, asks, places)]
    return {
        name: _filled(np.stack([part[name] for part in parts]), count)
        for name in parts[0]
    }


def _filled(array, count):
    missing = max(0, count - len(array))
    if not missing:
        return array
    return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])


def check(method: Method) -> None:
    """Refuse networks that were trained for different classes.

    Raises:
      ValueError: it names them.
    """
    own = classes(method)
    named = {
        role: network.metadata.get("classes", own)
        for role, network in method.networks.items()
    }
    counts = {role: n.model.num_classes for role, n in method.networks.items()}
    if any(names != own or counts[role] != len(own) for role, names in named.items()):
        raise ValueError(
            "the networks were trained for different classes: "
            + ", ".join(
                f"{role}: {counts[role]}, named {names[:3]} …"
                for role, names in named.items()
            )
        )


def check_images(method: Method, image_size: int) -> None:
    """Trace all steps without computing anything, for what cannot be.

    A method on the host takes images of any size; `image_size` does not matter then.

    Raises:
      ValueError: for images that are too small, or more regions than can be found.
    """
    if on_host(method):
        images = [np.zeros((1, 1, 3), np.uint8)]
        jax.eval_shape(lambda own: _run_on_host(method, own, images), variables(method))
        return
    if not image_size:
        raise ValueError(
            "`image_size` is 0, images as they are; the method allows 1 or more, since "
            "its images are on the device, all of one size"
        )
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8)
    jax.eval_shape(
        lambda variables, images: run(method, variables, images)[0],
        variables(method),
        images,
    )


def _run_on_host(method, variables, images):
    """Trace the steps with what is cut of images, which nothing is asked of."""
    held = [method.hold(image) for image in images]
    state = method.start(len(images), 0)
    asks = np.zeros(state["ask"].shape, np.int32)
    for t, step in enumerate(method.steps):
        places = np.full(len(images), t, np.int32)
        pixels = cut(step, held, asks, places)
        state, _ = step.run(variables, pixels, None, state, places)


def run(method: Method, variables, images: jax.Array):
    """Run images through all steps, as one traced program would.

    Args:
      method: any.
      variables: of its networks.
      images: uint8 [B, H, W, 3].

    Returns:
      Logits [B, T, N] after each step, and the state after the last.
    """
    state, answers = method.start(len(images), images.shape[1]), []
    for t, step in enumerate(method.steps):
        place = jnp.full(len(images), t, jnp.int32)
        state, logits = step.run(variables, images, None, state, place)
        answers.append(logits)
    return jnp.stack(answers, 1), state


def decide(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return confidence, the largest softmax, and class int32 of logits [..., N]."""
    score = jax.nn.softmax(logits)
    return score.max(-1), score.argmax(-1).astype(jnp.int32)


OF_ANSWERS = ("margin", "entropy")  # features of any method


def features(method: Method) -> tuple[str, ...]:
    """Return the names of what rules may see of each step beside the confidence.

    Of every method the `margin` between the largest softmax and the next, and the
    `entropy` of the softmax as a share of the most that it can be; and its own.
    """
    return (*OF_ANSWERS, *getattr(method, "features", ()))


def check_features(method: Method, names) -> None:
    """Raise ValueError for names that are not among the method's `features`."""
    if unknown := [name for name in names if name not in features(method)]:
        raise ValueError(
            f"`features` holds {', '.join(unknown)}; the method offers "
            f"{', '.join(features(method))}"
        )


def observe(method: Method, state, logits: jax.Array, names=None) -> jax.Array:
    """Return features [b, F] of a state after a step, and its logits [b, N].

    Args:
      method: any.
      state: of b images.
      logits: the answer after the step.
      names: of the features in their order; all of them where None.
    """
    score = jax.nn.softmax(logits)
    best = jnp.arange(score.shape[1])[None] == score.argmax(-1)[:, None]
    second = jnp.where(best, 0.0, score).max(-1)
    bits = -jnp.where(score > 0, score * jnp.log(score), 0.0).sum(-1)
    found = {
        "margin": score.max(-1) - second,
        "entropy": bits / np.log(max(2, score.shape[1])),
    }
    if hasattr(method, "observe"):
        found |= method.observe(state, logits)
    own = features(method) if names is None else names
    return jnp.stack([found[name] for name in own], -1)


def make_tables(method: Method, thresholds: Sequence[float], **options) -> Callable:
    """Return the function that runs every image, for several choices of regions.

    What comes before the choice runs once for all of them.

    Args:
      method: one whose regions may be chosen anew.
      thresholds: of the IoU, for its `choose`.
      **options: of `make_table`.

    Returns:
      `tables(variables, batch)`: what `make_table` of each would return, in one dict of
      keys `0 confidence`, `0 predicted`, `1 confidence` and so on.
    """
    run, choices = _Table(method, **options), []
    for threshold in thresholds:
        choose = lambda _, state, own=threshold: method.choose(state, own)
        choices.append(parallel.predict_step(choose))

    def tables(variables, batch):
        shared, found = run.steps(variables, batch, 0, method.chosen), {}
        for number, choose in enumerate(choices):
            own = shared._replace(state=choose(None, shared.state))
            rest = run.steps(variables, batch, method.chosen, len(method.steps), own)
            found |= {f"{number} {k}": v for k, v in run.arrays(rest, batch).items()}
        return found

    return tables


def make_table(
    method: Method, *, logits: bool = False, features: bool = False
) -> Callable:
    """Return the function that runs every image through every step.

    Each distinct step is compiled once, as in the engine, and mapped over the devices.

    Args:
      method: any.
      logits: return these as well.
      features: and what `features(method)` names.

    Returns:
      `table(variables, batch)` for uint8 images `batch["image"]` [D, b, H, W, 3]: a
      dict of `confidence` and `predicted` [D, b, T], the fields of `Regions` that are
      not None, with `logits` these [D, b, T, N], with `features` these [D, b, T, F]. Of a method on the host,
      `batch["image"]` may also be D lists of b images of any sizes.
    """
    run = _Table(method, logits=logits, features=features)

    def table(variables, batch):
        so_far = run.steps(variables, batch, 0, len(method.steps))
        return run.arrays(so_far, batch)

    return table


class _SoFar(NamedTuple):
    """What is known of images after some steps: a state, and of each step the answers."""

    state: object
    decisions: tuple = ()
    observed: tuple = ()


class _Table:
    """The programs of `make_table`."""

    def __init__(self, method, *, logits=False, features=False):
        self._method, self._logits, self._features = method, logits, features
        self._programs = {
            step: self._mapped(step, step == method.steps[0])
            for step in distinct(method.steps)
        }

        def look(_, given):
            size = 0 if on_host(method) else given["image"].shape[1]
            found = method.regions(given["state"], size)
            return {} if found is None else found._asdict()

        self._regions = parallel.predict_step(look)
        # A program of its own, so that it cannot change how answers are rounded.
        self._watch = parallel.predict_step(
            lambda _, given: observe(method, given["state"], given["answer"])
        )

    def _mapped(self, step, first):
        method, answers = self._method, self._logits or self._features

        def one(variables, given):
            images, t = given["image"], given["t"]
            size = 0 if on_host(method) else images.shape[1]
            state = method.start(len(t), size) if first else given["state"]  # [b, ...]
            state, answer = step.run(variables, images, None, state, t)
            return state, (*decide(answer), *([answer] if answers else []))

        return parallel.predict_step(one)

    def steps(self, variables, batch, start, end, so_far=None) -> _SoFar:
        """Take the steps from one place to another, with what came before."""
        state, decisions, observed = so_far or _SoFar(None)
        given = {"image": batch["image"]}
        on = on_host(self._method)
        see = _seer(self._method, batch["image"]) if on else None
        shape = len(batch["image"]), len(batch["image"][0])
        for t, step in enumerate(self._method.steps[start:end], start):
            given["t"] = np.full(shape, t, np.int32)
            if t:
                given["state"] = state
            if see is not None:
                given["image"] = see(step, state, given["t"])
            own = {role: variables[role] for role in step.roles}
            state, decision = self._programs[step](own, given)
            decisions = (*decisions, decision)
            if self._features:
                seen = self._watch(None, {"state": state, "answer": decision[2]})
                observed = (*observed, seen)
        return _SoFar(state, decisions, observed)

    def arrays(self, so_far: _SoFar, batch) -> dict:
        """Return what is known after the last step as arrays."""
        columns = zip(*so_far.decisions)
        stacked = [jnp.stack(column, 2) for column in columns]  # [D, b, T, ...]
        wanted = ("confidence", "predicted", *(["logits"] if self._logits else []))
        own = dict(zip(wanted, stacked))
        if self._features:
            own["features"] = jnp.stack(so_far.observed, 2)
        given = {"state": so_far.state}
        if not on_host(self._method):
            given["image"] = batch["image"]
        found = self._regions(None, given)
        return own | {key: value for key, value in found.items() if value is not None}


def _seer(method, images):
    """Return the function that cuts what a step reads of D x b images on the host."""
    held = [[method.hold(np.asarray(image)) for image in part] for part in images]
    nothing = np.zeros(method.start(1, 0)["ask"].shape, np.int32)

    def see(step, state, places):
        asks = nothing[None].repeat(places.shape[1], 1).repeat(len(places), 0)
        if state is not None:
            asks = np.asarray(state["ask"])
        parts = [cut(step, *own) for own in zip(held, asks, places)]
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    return see


def make_trace(method: Method) -> Callable:
    """Return the function that runs all steps on a few images, for pictures of them.

    Returns:
      `trace(images, rule)` for uint8 [B, H, W, 3] and a `stopping.Rule`: NumPy arrays
      as `pictures.examples` takes them, without labels.
    """
    tables = {seen: make_table(method, features=seen) for seen in (False, True)}
    own = parallel.replicate(variables(method), jax.local_devices()[:1])

    def trace(images, rule):
        batch = [images] if on_host(method) else np.asarray(images)[None]
        found = parallel.gather(tables[bool(rule.features)](own, {"image": batch}))
        columns = np.moveaxis(found.pop("features", np.zeros((0, 0, 0))), -1, 0)
        seen = dict(zip(features(method), columns))
        exits = rule.exits(found["confidence"], seen)
        return found | {"image": images, "exit": exits}

    return trace
