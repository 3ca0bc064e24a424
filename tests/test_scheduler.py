"""The policy of the engine alone: whose turn it is."""

import numpy as np
import pytest

from anchornet_jax.inference.scheduler import Scheduler


def make(batch=2, slots=6, wait=3):
    """Return a scheduler of a method with four places and three programs."""
    return Scheduler([0, 1, 2, 2], slots, batch, wait)


def test_deepest_full_batch_first():
    one = make()
    slots = one.enter(6)
    assert one.busy and not one.room() and one.full() is None
    one.proceed(slots[:2], np.array([1, 1]))
    one.proceed(slots[2:5], np.array([2, 2, 3]))
    launch = one.full()
    assert launch.program == 2 and launch.slots.tolist() == slots[2:4].tolist()
    assert one.full().program == 1
    assert one.full() is None  # one image waits for others


def test_nobody_waits_for_ever():
    one = make(wait=2)
    slots = one.enter(4)
    one.proceed(slots[:1], np.array([3]))
    for _ in range(2):
        assert one.full() is None
        one.enter(1)
    one.enter(1)
    launch = one.full()
    assert launch.program == 2 and launch.slots.tolist() == slots[:1].tolist()


def test_what_is_left_begins_with_the_first_program():
    """Those who go on after it fill up the later ones."""
    one = make()
    slots = one.enter(3)
    one.proceed(slots[:1], np.array([2]))
    one.proceed(slots[1:2], np.array([1]))
    assert [one.rest().program, one.rest().program] == [1, 2]
    assert one.rest() is None


@pytest.mark.parametrize("seed", range(5))
def test_slots_are_neither_lost_nor_doubled(seed):
    """A random stream through all places: every image takes each step once, in order."""
    rng = np.random.default_rng(seed)
    one, waiting, place = make(batch=3, slots=9), 100, {}
    taken, running = np.zeros(4, int), []
    while waiting or one.busy:
        launch = one.full()
        if launch is None and waiting and one.room():
            slots = one.enter(min(3, waiting))
            waiting -= len(slots)
            place |= dict.fromkeys(slots.tolist(), 0)
            running.append(slots)
        elif launch is None and not running:
            launch = one.rest()
        if launch is not None:
            assert len(set(launch.slots.tolist())) == len(launch.slots) <= 3
            for slot in launch.slots.tolist():
                place[slot] += 1
                assert [0, 1, 2, 2][place[slot]] == launch.program
            running.append(launch.slots)
        if running and rng.random() < 0.6:
            slots = running.pop(0)
            at = np.array([place[slot] for slot in slots.tolist()])
            np.add.at(taken, at, 1)
            leaves = (at == 3) | (rng.random(len(at)) < 0.3)
            one.leave(slots[leaves])
            one.proceed(slots[~leaves], at[~leaves] + 1)
        assert len(set(one.free)) == len(one.free)
    assert taken[0] == 100 and sorted(one.free) == list(range(9))
    assert (np.diff(taken) <= 0).all()
