"""Early exit for real: images leave as soon as they are sure, and batches stay full.

Localizing Semantic Patches (2022), Algorithm 1, as an engine. Images in flight live in
slots on the device. Three programs of one static batch size work on any set of slots:
the glance, AnchorNet, and one patch. Whoever goes on after a step waits in a queue for
the next program; images of different batches, and at different patches, share a launch,
as in continuous batching of language models. AnchorNet runs on no image that leaves at
the glance. The host decides about one launch while the device works on later ones.

    classifier = inference.Classifier(method, rule, image_size=224, batch_size=64)
    results = classifier.classify(images)            # in input order
    for result in classifier.stream(iterator): ...   # of any length
"""

import collections
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax import sequence, stopping

DEPTH = 2  # launches under way on a device: one runs, the next is ready


class Result(NamedTuple):
    """What became of one image.

    Attributes:
      predicted: class.
      confidence: of the class, at the exit.
      exit: 0-based; the number of inputs seen less one.
      corners: [K, 2] int32 of its patches in pixels, None if it left at the glance.
      logits: [exit + 1, N] fused after each input, if asked for, else None.
    """

    predicted: int
    confidence: float
    exit: int
    corners: np.ndarray | None = None
    logits: np.ndarray | None = None


class StreamError(RuntimeError):
    """A stream broke; the results of all images before that were delivered."""


class Classifier:
    """The sequential classifier with early exit.

    Attributes:
      method: the networks.
      rule: who leaves when, from `stopping`.
      image_size: side of the square images in pixels.
      batch_size: images of a launch, on each device.
      in_flight: images on each device at most; four batches by default.
      max_wait: launches after which an image goes on in a batch that is not full.
      details: also return corners and logits.
      devices: to be used; all local ones by default.
    """

    def __init__(
        self,
        method: sequence.Sequence,
        rule: stopping.Rule,
        *,
        image_size: int,
        batch_size: int = 64,
        in_flight: int | None = None,
        max_wait: int = 64,
        details: bool = False,
        devices=None,
    ):
        sequence.check(method)
        in_flight = 4 * batch_size if in_flight is None else in_flight
        if batch_size < 1 or in_flight < batch_size:
            raise ValueError(
                f"`batch_size` is {batch_size} and `in_flight` {in_flight}; allowed is "
                "1 or more, and at least a batch in flight"
            )
        if max_wait < 1:
            raise ValueError(f"`max_wait` is {max_wait}; allowed is 1 or more")
        self.image_size, self.batch_size = image_size, batch_size
        self.in_flight, self.max_wait, self.details = in_flight, max_wait, details
        self.method = method
        self.rule = rule
        self.programs = _programs(method, details)
        self.devices = list(devices or jax.local_devices())
        variables = method.variables()
        self._variables = [jax.device_put(variables, d) for d in self.devices]

    @property
    def rule(self) -> stopping.Rule:
        """Who leaves when; may be replaced between streams, nothing is recompiled."""
        return self._rule

    @rule.setter
    def rule(self, rule):
        if rule.steps != self.method.inputs - 1:
            raise ValueError(
                f"`rule` decides {rule.steps} times; {self.method.inputs} inputs need "
                f"{self.method.inputs - 1}"
            )
        self._rule = rule

    def classify(self, images) -> list[Result]:
        """Classify uint8 images [B, H, W, 3]; results in their order."""
        return list(self.stream(images))

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Result]:
        """Classify a stream of uint8 images [H, W, 3]; results in its order.

        At most `in_flight` images per device are held, and results only as long as an
        earlier image is under way.

        Raises:
          ValueError: for an image of the wrong size or type; it names the item.
          StreamError: if the stream raises; it names the item. Either comes after the
            results of all earlier images.
        """
        source = _Source(images, self.image_size)
        lanes = [_Lane(self, *both) for both in zip(self.devices, self._variables)]
        finished, position = {}, 0
        while source.open or any(lane.busy for lane in lanes):
            moved = [lane.advance(source, finished) for lane in lanes]
            under_way = [lane for lane in lanes if lane.launches]
            if not any(moved) and under_way:  # nothing to do but wait
                under_way[0].collect(finished)
            while position in finished:
                yield finished.pop(position)
                position += 1
        if source.error is not None:
            raise source.error


class _Source:
    """The images of a stream, checked and numbered, until it ends or breaks."""

    def __init__(self, images, size):
        self._images, self._shape = iter(images), (size, size, 3)
        self._item, self.open, self.error = 0, True, None

    def take(self, count) -> list[tuple[int, np.ndarray]]:
        """Return up to `count` (number, image) pairs; keep what went wrong."""
        taken = []
        while self.open and len(taken) < count:
            try:
                image = np.asarray(next(self._images))
            except StopIteration:
                self.open = False
            except Exception as error:  # noqa: BLE001, whatever the iterator raises
                self._break(StreamError(f"`images` raised at item {self._item}"), error)
            else:
                if image.shape != self._shape or image.dtype != np.uint8:
                    found = f"{image.dtype} {list(image.shape)}"
                    wanted = f"uint8 {list(self._shape)}"
                    message = f"`images` item {self._item} is {found}; needed: {wanted}"
                    self._break(ValueError(message))
                else:
                    taken.append((self._item, image))
                    self._item += 1
        return taken

    def _break(self, error, cause=None):
        error.__cause__ = cause
        self.open, self.error = False, error


class _Launch(NamedTuple):
    slots: np.ndarray  # [b] of the images, without the filling
    outcome: tuple  # arrays on the device


class _Lane:
    """One device: its slots, its queues, and the launches under way."""

    def __init__(self, classifier, device, variables):
        self._c, self._device, self._variables = classifier, device, variables
        method, slots = classifier.method, classifier.in_flight
        # One slot more, for the filling of batches that are not full.
        self._state = jax.device_put(
            _new_state(method, slots + 1, classifier.image_size), device
        )
        self._free = list(range(slots))
        self._number = np.zeros(slots, np.int64)
        self._step = np.zeros(slots, np.int32)  # inputs seen, less one
        self._confidence = np.zeros((slots, method.inputs), np.float32)
        self._logits = [[] for _ in range(slots)]
        self._queues = {"localize": collections.deque(), "patch": collections.deque()}
        self._count = 0
        self.launches = collections.deque()

    @property
    def busy(self) -> bool:
        """Whether any image is under way."""
        return len(self._free) < self._c.in_flight

    def advance(self, source, finished) -> bool:
        """Collect what is ready or launch what is possible; False if neither."""
        if self.launches and self.launches[0].outcome[0].is_ready():
            self.collect(finished)
            return True
        if len(self.launches) >= DEPTH:
            return False
        size = self._c.batch_size
        for name in ("patch", "localize"):
            queue = self._queues[name]
            late = queue and self._count - queue[0][1] > self._c.max_wait
            if len(queue) >= size or late:
                return self._start(name)
        if source.open and len(self._free) >= size:
            return self._enter(source.take(size))
        if self.launches:
            return False  # its survivors may fill a batch
        return any(self._queues[n] and self._start(n) for n in ("localize", "patch"))

    def _enter(self, items) -> bool:
        """Put new images into slots and launch the glance."""
        if not items:
            return False
        numbers, images = zip(*items)
        slots = np.array([self._free.pop() for _ in items])
        self._number[slots], self._step[slots] = numbers, 0
        batch = np.zeros((self._c.batch_size, *images[0].shape), np.uint8)
        np.stack(images, out=batch[: len(images)])
        self._launch("glance", slots, jax.device_put(batch, self._device))
        return True

    def _start(self, name) -> bool:
        """Launch a program on the images that wait for it longest."""
        queue = self._queues[name]
        count = min(len(queue), self._c.batch_size)
        slots = np.array([queue.popleft()[0] for _ in range(count)])
        if name == "patch":
            self._step[slots] += 1
            self._launch(name, slots, self._filled(self._step[slots] - 1))
        else:
            self._launch(name, slots)
            self._wait("patch", slots)  # corners stay on the device: nothing to decide
        return True

    def _launch(self, name, slots, *arguments) -> None:
        self._count += 1
        filling = self._c.in_flight  # the slot beyond the last
        where = self._filled(slots, filling)
        self._state, outcome = self._c.programs[name](
            self._variables, self._state, where, *arguments
        )
        if name != "localize":
            self.launches.append(_Launch(slots, outcome))

    def _filled(self, values, filling=0):
        batch = np.full(self._c.batch_size, filling, np.int32)
        batch[: len(values)] = values
        return batch

    def _wait(self, name, slots) -> None:
        self._queues[name].extend((slot, self._count) for slot in slots)

    def collect(self, finished) -> None:
        """Fetch the oldest launch; let go who is sure, queue the others."""
        slots, outcome = self.launches.popleft()
        confidence, predicted, *rest = (
            np.asarray(array)[: len(slots)] for array in outcome
        )
        steps = self._step[slots]
        self._confidence[slots, steps] = confidence
        for slot, logits in zip(slots, rest[1] if rest else ()):
            self._logits[slot].append(logits)
        leaves = np.zeros(len(slots), bool)
        for step in np.unique(steps):
            rows = steps == step
            history = self._confidence[slots[rows], : step + 1]
            leaves[rows] = self._c.rule.leaves(int(step), history)
        for row in np.flatnonzero(leaves):
            slot, step = slots[row], int(steps[row])
            corners = rest[0][row] if rest and step else None
            logits = np.stack(self._logits[slot]) if rest else None
            finished[int(self._number[slot])] = Result(
                int(predicted[row]), float(confidence[row]), step, corners, logits
            )
            self._logits[slot] = []
            self._free.append(int(slot))
        going = ~leaves
        self._wait("localize", slots[going & (steps == 0)])
        self._wait("patch", slots[going & (steps > 0)])


def _new_state(method, slots, image_size) -> dict:
    """Return the slots: pixels, sums over inputs, and patches of the images."""
    classes, k = len(method.glance.metadata["classes"]), method.inputs - 1
    return {
        "image": np.zeros((slots, image_size, image_size, 3), np.uint8),
        "total": np.zeros((slots, classes), np.float32),
        "seen": np.zeros((slots, 1), np.float32),
        "corners": np.zeros((slots, k, 2), np.int32),
        "valid": np.zeros((slots, k), bool),
    }


def _programs(method: sequence.Sequence, details: bool) -> dict:
    """Return the three compiled programs; each reuses the buffers of the slots."""

    def decide(state, slots):
        total, seen = state["total"][slots], state["seen"][slots]
        score = jax.nn.softmax(total) if method.fuse == "logits" else total / seen
        outcome = score.max(-1), score.argmax(-1)
        return (*outcome, state["corners"][slots], total) if details else outcome

    def weigh(logits):
        return logits if method.fuse == "logits" else jax.nn.softmax(logits)

    def glance(variables, state, slots, images):
        logits = weigh(sequence.glance_logits(method, variables, images))
        state = {
            **state,
            "image": state["image"].at[slots].set(images),
            "total": state["total"].at[slots].set(logits),
            "seen": state["seen"].at[slots].set(1.0),
        }
        return state, decide(state, slots)

    def localize(variables, state, slots):
        found = sequence.localize(method, variables, state["image"][slots])
        state = {
            **state,
            "corners": state["corners"].at[slots].set(found.corners),
            "valid": state["valid"].at[slots].set(found.valid),
        }
        return state, ()

    def patch(variables, state, slots, index):
        corners = state["corners"][slots, index][:, None]  # [b, 1, 2]
        exists = state["valid"][slots, index][:, None].astype(jnp.float32)
        logits = sequence.patch_logits(
            method, variables, state["image"][slots], corners
        )[:, 0]
        state = {
            **state,
            "total": state["total"].at[slots].add(weigh(logits) * exists),
            "seen": state["seen"].at[slots].add(exists),
        }
        return state, decide(state, slots)

    compiled = functools.partial(jax.jit, donate_argnums=1)
    return {f.__name__: compiled(f) for f in (glance, localize, patch)}
