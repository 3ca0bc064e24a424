"""Which step to launch next, and on which slots: the policy of the early-exit engine.

Images in flight live in slots. Who goes on after a step waits in the queue of the next
program; images at different places of a repeated step share a launch, as requests share
one in continuous batching of language models. Nothing here knows arrays on devices.
"""

import collections
from typing import NamedTuple

import numpy as np


class Launch(NamedTuple):
    """A program to be launched: its number, and the slots of its images [b]."""

    program: int
    slots: np.ndarray


class Queue:
    """Slots that wait for a program, those that have waited longest first."""

    def __init__(self):
        self._slots, self._since = collections.deque(), collections.deque()

    def __len__(self):
        return len(self._slots)

    def put(self, slots, now: int) -> None:
        """Let slots wait from launch number `now` on."""
        self._slots.extend(slots.tolist())
        self._since.extend([now] * len(slots))

    def take(self, count: int) -> np.ndarray:
        """Return at most `count` slots, which wait no more."""
        count = min(count, len(self))
        for _ in range(count):
            self._since.popleft()
        return np.array([self._slots.popleft() for _ in range(count)], np.int64)

    def overdue(self, now: int, wait: int) -> bool:
        """Say whether the first has waited for more than `wait` launches."""
        return bool(self._since) and now - self._since[0] > wait


class Scheduler:
    """The slots of one device and the queues of its programs.

    Attributes:
      free: slots without an image.
    """

    def __init__(self, programs: list[int], slots: int, batch_size: int, max_wait: int):
        """Start with all slots free.

        Args:
          programs: of each place in the method, the number of its program.
          slots: images in flight at most.
          batch_size: images of a launch.
          max_wait: launches after which an image goes on in a batch that is not full.
        """
        self._programs, self._slots = programs, slots
        self._size, self._wait, self._count = batch_size, max_wait, 0
        self._queues = {program: Queue() for program in sorted(set(programs[1:]))}
        self.free = list(range(slots))

    @property
    def busy(self) -> bool:
        """Whether any image is under way."""
        return len(self.free) < self._slots

    def enter(self, count: int) -> np.ndarray:
        """Return slots for new images, which are no longer free."""
        slots = np.array(self.free[-count:])
        del self.free[-count:]
        self._count += 1
        return slots

    def room(self) -> bool:
        """Say whether a full batch of new images has slots."""
        return len(self.free) >= self._size

    def full(self) -> Launch | None:
        """Return the deepest program with a full batch, or an image that is overdue."""
        for program, queue in reversed(self._queues.items()):
            if len(queue) >= self._size or queue.overdue(self._count, self._wait):
                return self._launch(program)
        return None

    def rest(self) -> Launch | None:
        """Return the first program with anything to do: its survivors may join others."""
        waiting = (program for program, queue in self._queues.items() if len(queue))
        return next(map(self._launch, waiting), None)

    def proceed(self, slots, place: np.ndarray) -> None:
        """Queue slots [b] for the step at their next place [b] of the method."""
        programs = np.array(self._programs)[place]
        for program in np.unique(programs):
            self._queues[program].put(slots[programs == program], self._count)

    def leave(self, slots) -> None:
        """Free the slots of images that have left."""
        self.free.extend(slots.tolist())

    def _launch(self, program) -> Launch:
        self._count += 1
        return Launch(program, self._queues[program].take(self._size))
