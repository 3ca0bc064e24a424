"""The programs of the early-exit engine, and one device that runs them.

Images live in slots on the device from their first step to their exit. Each distinct
step is one program of one static batch size that works on any set of slots, so the
images of a launch may be of different batches and at different places.
"""

import collections
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from anchornet_jax.inference.scheduler import Scheduler
from anchornet_jax.methods import method as protocol

DEPTH = 2  # launches under way on a device: one runs, the next is ready


class Result(NamedTuple):
    """What became of one image; of B images, with one axis more in front.

    Attributes:
      predicted: class.
      confidence: of the class, at the exit.
      exit: 0-based; the number of steps taken less one.
      boxes: [T, 4] int32, what was looked at, if asked for, see `method.Regions`; -1
        past the exit.
      logits: [T, N] the answer after each step, if asked for; NaN past the exit.
    """

    predicted: int | np.ndarray
    confidence: float | np.ndarray
    exit: int | np.ndarray
    boxes: np.ndarray | None = None
    logits: np.ndarray | None = None


class Leaving(NamedTuple):
    """Images that have left: their places in the source [b], and what became of them."""

    numbers: np.ndarray
    result: Result


class Outcome(NamedTuple):
    """What a launch answers, on the device; None what nobody asked for."""

    confidence: jax.Array  # [b]
    predicted: jax.Array  # [b]
    features: jax.Array | None  # [b, F], what else the rule sees
    ask: jax.Array | None  # [b, A, 4], what to cut of images on the host next
    logits: jax.Array | None  # [b, N]
    boxes: jax.Array | None  # [b, T, 4]


class Programs:
    """The compiled steps of a method, shared by all devices.

    Attributes:
      method: with its networks as inference runs them.
      places: of each place in the method, the number of its program.
      traced: how often each step was traced, by name; more than once per type of device
        would mean that something is recompiled.
      launched: how often each step was launched, by name.
    """

    def __init__(
        self,
        method: protocol.Method,
        image_size: int,
        *,
        details: bool,
        features: Sequence[str] = (),
    ):
        """Compile nothing yet; `details` also returns boxes and logits."""
        self.method, self._size, self._details = method, image_size, details
        self.features = tuple(features)
        self._steps = protocol.distinct(method.steps)
        self.places = [self._steps.index(step) for step in method.steps]
        self.traced, self.launched = collections.Counter(), collections.Counter()
        self.on_host = protocol.on_host(method)
        self._keeps_pixels = protocol.keeps_pixels(method)
        self._compiled = [
            jax.jit(self._first, donate_argnums=(1, 2)),
            *(jax.jit(self._later(step), donate_argnums=2) for step in self._steps[1:]),
        ]
        if self.on_host:
            self._compiled = [
                jax.jit(self._cut(step), donate_argnums=2) for step in self._steps
            ]

    def launch(self, program: int, variables, pixels, state, slots, given):
        """Launch a program; return the new pixels and state, and what it answers.

        Args:
          program: its number.
          variables: of all networks by role.
          pixels: uint8 [slots, H, W, 3], None if no step needs them later.
          state: of the slots; its buffers are reused.
          slots: [b] int32.
          given: images [b, H, W, 3] for the first program, else the places [b] int32;
            of images on the host always both, what was cut of them and the places.
        """
        step = self._steps[program]
        self.launched[step.name] += 1
        own = {role: variables[role] for role in step.roles}
        run = self._compiled[program]
        if program == 0 and not self.on_host:
            return run(own, pixels, state, slots, given)
        return (pixels, *run(own, pixels, state, slots, given))

    def bytes(self, program: int, variables, pixels, state, slots, given) -> int:
        """Return the device memory of a launch, as the compiler plans it.

        Variables, slots, what is given and all intermediate results; see `launch`.
        """
        step = self._steps[program]
        own = {role: variables[role] for role in step.roles}
        whole = jax.tree.leaves(variables)
        read = sum(leaf.nbytes for leaf in jax.tree.leaves(own))
        rest = sum(leaf.nbytes for leaf in whole) - read  # stays there all the same
        arguments = (own, pixels, state, slots, given)
        about = self._compiled[program].lower(*arguments).compile().memory_analysis()
        return (
            rest
            + sum(
                getattr(about, f"{name}_size_in_bytes")
                for name in ("argument", "output", "temp")
            )
            - about.alias_size_in_bytes
        )

    def step(self, program: int) -> protocol.Step:
        """Return the step of a program."""
        return self._steps[program]

    def new_slots(self, count: int):
        """Return the pixels and the state of so many slots."""
        shape = (count, self._size, self._size, 3)
        pixels = np.zeros(shape, np.uint8) if self._keeps_pixels else None
        return pixels, jax.device_get(self.method.start(count, self._size))

    def _first(self, variables, pixels, state, slots, images):
        """Run the first step on images; keep them where later steps need them."""
        own = self.method.start(len(images), self._size)
        place = jax.numpy.zeros(len(images), np.int32)
        if pixels is not None:
            pixels = pixels.at[slots].set(images)
        return (
            pixels,
            *self._run(
                self._steps[0], variables, images, None, own, place, slots, state
            ),
        )

    def _later(self, step):
        def run(variables, pixels, state, slots, place):
            own = jax.tree.map(lambda leaf: leaf[slots], state)
            return self._run(step, variables, pixels, slots, own, place, slots, state)

        return run

    def _cut(self, step):
        """Return the program of a step that reads what was cut on the host."""

        def run(variables, pixels, state, slots, given):
            cut, place = given
            if step == self._steps[0]:
                own = self.method.start(len(slots), self._size)
            else:
                own = jax.tree.map(lambda leaf: leaf[slots], state)
            return self._run(step, variables, cut, None, own, place, slots, state)

        return run

    def _run(self, step, variables, pixels, rows, own, place, slots, state):
        """Run a step on gathered rows and scatter what it changed."""
        self.traced[step.name] += 1
        changed, logits = step.run(variables, pixels, rows, own, place)
        # Then a slot still holds what an earlier image left there.
        first = step == self._steps[0]

        def put(slot, before, after):
            return slot if after is before and not first else slot.at[slots].set(after)

        state = jax.tree.map(put, state, own, changed)
        found = self.method.regions(changed, self._size) if self._details else None
        return state, Outcome(
            *protocol.decide(logits),
            features=protocol.observe(self.method, changed, logits, self.features)
            if self.features
            else None,
            ask=changed["ask"] if self.on_host else None,
            logits=logits if self._details else None,
            boxes=None if found is None else found.boxes,
        )


class Pending(NamedTuple):
    """A launch under way: its slots [b], and arrays on the device."""

    slots: np.ndarray
    outcome: Outcome


class Runner:
    """One device: slots on it, what is known of their images, launches under way.

    Attributes:
      pending: launches whose answers were not collected yet, oldest first.
      scheduler: whose turn it is.
    """

    def __init__(self, programs: Programs, device, variables, settings, course=None):
        """Make the slots; `settings` is the `engine.Classifier`, `course` the stream's."""
        self._programs, self._device, self._variables = programs, device, variables
        self._settings, self._course = settings, course
        slots, size = settings.in_flight, settings.batch_size
        self.scheduler = Scheduler(programs.places, slots, size, settings.max_wait)
        # One slot more, for the filling of batches that are not full.
        self._pixels, self._state = jax.device_put(
            programs.new_slots(slots + 1), device
        )
        self._number = np.zeros(slots, np.int64)
        self._place = np.zeros(slots, np.int32)  # of the step that was taken last
        exits = len(programs.places)
        self._history = np.zeros((slots, exits), np.float32)  # of confidence
        self._seen = {
            name: np.zeros((slots, exits), np.float32) for name in programs.features
        }
        self._details = empty(settings, slots)[3:]  # boxes and logits, or None
        # Of images on the host: what is kept of them, and what they ask for.
        self._held = [None] * slots
        self._asks = np.zeros(
            (slots, *self._state["ask"].shape[1:]) if programs.on_host else 0, np.int32
        )
        self.pending = collections.deque()

    @property
    def busy(self) -> bool:
        """Whether any image is under way."""
        return self.scheduler.busy

    @property
    def asked(self) -> tuple[int, ...]:
        """The shape of what an image on the host asks for."""
        return self._asks.shape[1:]

    @property
    def ready(self) -> bool:
        """Whether a launch can be collected without waiting."""
        return self.in_turn and self.pending[0].outcome.confidence.is_ready()

    @property
    def in_turn(self) -> bool:
        """Whether the oldest launch, if there is any, is the next to be collected."""
        if not self.pending:
            return False
        first = self.pending[0].slots[0]
        return self._place[first] > 0 or self._course.in_turn(self._number[first])

    def advance(self, source) -> bool:
        """Launch what is possible; return whether anything was."""
        if len(self.pending) >= DEPTH:
            return False
        if launch := self.scheduler.full():
            return self._continue(launch)
        if source.open and self.scheduler.room():
            size = self._settings.batch_size
            if self._course.opens(source.next + size - 1):
                return self._enter(*source.take(size))
        if self.pending:
            return False  # its survivors may fill a batch
        launch = self.scheduler.rest()
        return launch is not None and self._continue(launch)

    def measure(self, program: int, given) -> float:
        """Return the seconds of one full launch that nothing else waits for."""
        slots = np.arange(self._settings.batch_size)
        jax.block_until_ready(self._state)
        begun = time.perf_counter()
        self._launch(program, slots, given)
        jax.block_until_ready((self._state, self.pending.pop().outcome))
        return time.perf_counter() - begun

    def bytes(self, program: int, given) -> int:
        """Return the device memory of one full launch."""
        slots = np.arange(self._settings.batch_size, dtype=np.int32)
        own = self._variables, self._pixels, self._state
        return self._programs.bytes(program, *own, slots, given)

    def collect(self) -> Leaving:
        """Fetch the oldest launch; let go who is sure, queue the others."""
        slots, outcome = self.pending.popleft()
        confidence, predicted, features, ask, logits, boxes = (
            None if array is None else np.asarray(array)[: len(slots)]
            for array in outcome
        )
        place = self._place[slots]
        self._history[slots, place] = confidence
        for k, values in enumerate(self._seen.values()):
            values[slots, place] = features[:, k]
        if ask is not None:
            self._asks[slots] = ask
        if logits is not None:
            self._keep(slots, place, logits, boxes)
        leaves = np.zeros(len(slots), bool)
        for t in np.unique(place):
            rows = place == t
            own = slots[rows]
            history = self._history[own, : t + 1]
            seen = {name: values[own, : t + 1] for name, values in self._seen.items()}
            leaves[rows] = self._course.leaves(int(t), self._number[own], history, seen)
        left, going = slots[leaves], ~leaves
        self._course.left(self._number[left], place[leaves])
        for slot in left[~np.isfinite(confidence[leaves])]:
            logging.warning(
                "image %d: the networks' answer is not finite", self._number[slot]
            )
        self.scheduler.leave(left)
        for slot in left:
            self._held[slot] = None
        self.scheduler.proceed(slots[going], place[going] + 1)
        details = (None if d is None else d[left] for d in self._details)
        return Leaving(
            self._number[left],
            Result(predicted[leaves], confidence[leaves], place[leaves], *details),
        )

    def _enter(self, numbers, images) -> bool:
        """Put new images into slots and launch the first step."""
        if not len(numbers):
            return False
        slots = self.scheduler.enter(len(numbers))
        self._number[slots], self._place[slots] = numbers, 0
        for column, nothing in zip(self._details, (-1, np.nan)):
            if column is not None:
                column[slots] = nothing
        if self._programs.on_host:
            for slot, image in zip(slots, images):
                self._held[slot] = self._programs.method.hold(image)
            images = self._cut(0, slots)
        self._launch(0, slots, jax.device_put(images, self._device))
        return True

    def _continue(self, launch) -> bool:
        """Launch a later step on images that waited for it."""
        program, slots = launch
        self._place[slots] += 1
        if self._programs.on_host:
            given = self._cut(program, slots)
        else:
            filling = self._programs.places.index(program)
            given = self._filled(self._place[slots], filling)
        self._launch(program, slots, given)
        return True

    def _cut(self, program, slots):
        """Cut what a launch reads of images on the host; return it and the places."""
        places = self._programs.places.index(program)
        own = (
            [self._held[slot] for slot in slots],
            *(self._asks[slots], self._place[slots]),
        )
        cut = protocol.cut(
            self._programs.step(program), *own, len(self._filled(slots, 0))
        )
        return cut, self._filled(self._place[slots], places)

    def _launch(self, program, slots, given) -> None:
        where = self._filled(slots, self._settings.in_flight)  # the slot past the last
        self._pixels, self._state, outcome = self._programs.launch(
            program, self._variables, self._pixels, self._state, where, given
        )
        for array in outcome:
            if array is not None:
                array.copy_to_host_async()
        self.pending.append(Pending(slots, outcome))

    def _keep(self, slots, place, logits, boxes) -> None:
        """Keep the details of a launch: the answer, and what its step looked at."""
        own_boxes, own_logits = self._details
        own_logits[slots, place] = logits
        if boxes is not None:
            own_boxes[slots, place] = boxes[np.arange(len(slots)), place]

    def _filled(self, values, filling):
        batch = np.full(self._settings.batch_size, filling, np.int32)
        batch[: len(values)] = values
        return batch


def empty(settings, count: int) -> list:
    """Return empty arrays for the fields of `Result` of so many images."""
    exits = len(settings.method.steps)
    names = len(protocol.classes(settings.method))
    return [
        np.zeros(count, np.int32),
        np.zeros(count, np.float32),
        np.zeros(count, np.int32),
        np.full((count, exits, 4), -1, np.int32) if settings.details else None,
        np.full((count, exits, names), np.nan, np.float32)
        if settings.details
        else None,
    ]
