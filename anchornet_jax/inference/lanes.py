"""One device of the early-exit engine: slots, queues, and the launches under way.

Images live in slots on the device from their glance to their exit. Three programs of one
static batch size work on any set of slots, so the images of a launch may be of different
batches and at different steps.
"""

import collections
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from anchornet_jax.methods import anchornet

DEPTH = 2  # launches under way on a device: one runs, the next is ready


class Result(NamedTuple):
    """What became of one image; of B images, with one axis more in front.

    Attributes:
      predicted: class.
      confidence: of the class, at the exit.
      exit: 0-based; the number of inputs seen less one.
      corners: [K, 2] int32 of its patches in pixels, if asked for; -1 if it left at the
        glance, where nobody looked for patches.
      logits: [T, N] fused after each input, if asked for; NaN past the exit.
    """

    predicted: int | np.ndarray
    confidence: float | np.ndarray
    exit: int | np.ndarray
    corners: np.ndarray | None = None
    logits: np.ndarray | None = None


class Left(NamedTuple):
    numbers: np.ndarray  # [b] places of the images in the source
    result: Result  # of [b] images


class _Queue:
    """Slots that wait for a program, those that have waited longest first."""

    def __init__(self):
        self._slots, self._since = collections.deque(), collections.deque()

    def __len__(self):
        return len(self._slots)

    def put(self, slots, now) -> None:
        self._slots.extend(slots.tolist())
        self._since.extend([now] * len(slots))

    def take(self, count) -> np.ndarray:
        count = min(count, len(self))
        for _ in range(count):
            self._since.popleft()
        return np.array([self._slots.popleft() for _ in range(count)])

    def late(self, now, wait) -> bool:
        return bool(self._since) and now - self._since[0] > wait


class _Launch(NamedTuple):
    slots: np.ndarray  # [b] of the images, without the filling
    outcome: tuple  # arrays on the device


class Lane:
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
        self._history = np.zeros((slots, method.inputs), np.float32)  # of confidence
        self._details = columns(classifier, slots)[3:]  # corners and logits, or None
        self._queues = {"localize": _Queue(), "patch": _Queue()}
        self._count = 0
        self.launches = collections.deque()

    @property
    def busy(self) -> bool:
        """Whether any image is under way."""
        return len(self._free) < self._c.in_flight

    @property
    def ready(self) -> bool:
        """Whether a launch can be collected without waiting."""
        return bool(self.launches) and self.launches[0].outcome[0].is_ready()

    def advance(self, source) -> bool:
        """Launch what is possible; return whether anything was."""
        if len(self.launches) >= DEPTH:
            return False
        size = self._c.batch_size
        for name in ("patch", "localize"):
            queue = self._queues[name]
            if len(queue) >= size or queue.late(self._count, self._c.max_wait):
                return self._start(name)
        if source.open and len(self._free) >= size:
            return self._enter(*source.take(size))
        if self.launches:
            return False  # its survivors may fill a batch
        return any(self._queues[n] and self._start(n) for n in ("localize", "patch"))

    def measure(self, name, *arguments) -> float:
        """Return the seconds of one full launch that nothing else waits for."""
        slots = np.arange(self._c.batch_size)
        jax.block_until_ready(self._state)
        begun = time.perf_counter()
        self._launch(name, slots, *arguments)
        jax.block_until_ready(self._state)
        return time.perf_counter() - begun

    def _enter(self, numbers, pixels) -> bool:
        """Put new images into slots and launch the glance."""
        if not len(numbers):
            return False
        slots = np.array(self._free[-len(numbers) :])
        del self._free[-len(numbers) :]
        self._number[slots], self._step[slots] = numbers, 0
        for column, empty in zip(self._details, (-1, np.nan)):
            if column is not None:
                column[slots] = empty
        self._launch("glance", slots, jax.device_put(pixels, self._device))
        return True

    def _start(self, name) -> bool:
        """Launch a program on the images that wait for it longest."""
        slots = self._queues[name].take(self._c.batch_size)
        if name == "patch":
            self._step[slots] += 1
            self._launch(name, slots, _filled(self._step[slots] - 1, self._c, 0))
        else:
            self._launch(name, slots)
            self._wait("patch", slots)  # corners stay on the device: nothing to decide
        return True

    def _launch(self, name, slots, *arguments) -> None:
        self._count += 1
        where = _filled(slots, self._c, self._c.in_flight)  # the slot beyond the last
        self._state, outcome = self._c.programs[name](
            self._variables, self._state, where, *arguments
        )
        if name != "localize":
            for array in outcome:
                array.copy_to_host_async()
            self.launches.append(_Launch(slots, outcome))

    def _wait(self, name, slots) -> None:
        self._queues[name].put(slots, self._count)

    def collect(self) -> Left:
        """Fetch the oldest launch; let go who is sure, queue the others."""
        slots, outcome = self.launches.popleft()
        confidence, predicted, *rest = (
            np.asarray(array)[: len(slots)] for array in outcome
        )
        steps = self._step[slots]
        self._history[slots, steps] = confidence
        if rest:
            corners, logits = self._details
            corners[slots[steps > 0]] = rest[0][steps > 0]
            logits[slots, steps] = rest[1]
        leaves = np.zeros(len(slots), bool)
        for step in np.unique(steps):
            rows = steps == step
            history = self._history[slots[rows], : step + 1]
            leaves[rows] = self._c.rule.leaves(int(step), history)
        left, going = slots[leaves], ~leaves
        self._free.extend(left.tolist())
        self._wait("localize", slots[going & (steps == 0)])
        self._wait("patch", slots[going & (steps > 0)])
        details = (None if d is None else d[left] for d in self._details)
        return Left(
            self._number[left],
            Result(predicted[leaves], confidence[leaves], steps[leaves], *details),
        )


def columns(classifier, count) -> list:
    """Return empty arrays for the fields of `Result` of so many images."""
    method = classifier.method
    k, classes = method.inputs - 1, len(method.classes)
    return [
        np.zeros(count, np.int32),
        np.zeros(count, np.float32),
        np.zeros(count, np.int32),
        np.full((count, k, 2), -1, np.int32) if classifier.details else None,
        np.full((count, k + 1, classes), np.nan, np.float32)
        if classifier.details
        else None,
    ]


def _filled(values, classifier, filling):
    batch = np.full(classifier.batch_size, filling, np.int32)
    batch[: len(values)] = values
    return batch


def _new_state(method, slots, image_size) -> dict:
    """Return the slots: pixels, sums over inputs, and patches of the images."""
    classes, k = len(method.classes), method.inputs - 1
    return {
        "image": np.zeros((slots, image_size, image_size, 3), np.uint8),
        "total": np.zeros((slots, classes), np.float32),
        "seen": np.zeros((slots, 1), np.float32),
        "corners": np.zeros((slots, k, 2), np.int32),
        "valid": np.zeros((slots, k), bool),
        "branch": np.zeros(slots, np.int32),
    }


def programs(method: anchornet.Sequence, details: bool) -> dict:
    """Return the three compiled programs; each reuses the buffers of the slots."""

    def decide(state, slots):
        total, seen = state["total"][slots], state["seen"][slots]
        score = jax.nn.softmax(total) if method.fuse == "logits" else total / seen
        outcome = score.max(-1), score.argmax(-1)
        return (*outcome, state["corners"][slots], total) if details else outcome

    def weigh(logits):
        return logits if method.fuse == "logits" else jax.nn.softmax(logits)

    def glance(variables, state, slots, images):
        logits = weigh(anchornet.glance_logits(method, variables, images))
        state = {
            **state,
            "image": state["image"].at[slots].set(images),
            "total": state["total"].at[slots].set(logits),
            "seen": state["seen"].at[slots].set(1.0),
        }
        return state, decide(state, slots)

    def localize(variables, state, slots):
        found = anchornet.localize(method, variables, state["image"][slots])
        state = {
            **state,
            "corners": state["corners"].at[slots].set(found.corners),
            "valid": state["valid"].at[slots].set(found.valid),
            "branch": state["branch"].at[slots].set(found.branch),
        }
        return state, ()

    def patch(variables, state, slots, index):
        corners = state["corners"][slots, index][:, None]  # [b, 1, 2]
        exists = state["valid"][slots, index][:, None].astype(jnp.float32)
        logits = anchornet.patch_logits(
            method, variables, state["image"], corners, state["branch"][slots], slots
        )[:, 0]
        state = {
            **state,
            "total": state["total"].at[slots].add(weigh(logits) * exists),
            "seen": state["seen"].at[slots].add(exists),
        }
        return state, decide(state, slots)

    compiled = functools.partial(jax.jit, donate_argnums=1)
    return {f.__name__: compiled(f) for f in (glance, localize, patch)}
