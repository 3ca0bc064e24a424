"""Budgets that hold: a stream's mean cost is kept at its budget as it goes.

A rule is fitted to a budget on calibration images. Where the images of a stream are
harder than those, more of them go on and the stream costs more than was asked for; where
they are easier, it leaves some unspent. `Control` stands in the place of a rule, and moves
along the rules that were fitted to the budgets about its own, so that the mean comes out:

    table = export.load("runs/demo/export").calibration
    classifier.rule = control.Control(table, 80e6)
    for result in classifier.stream(iterator): ...

In milliseconds, `table.with_cost(classifier.milliseconds(), "ms")` takes the table's place.

Images come to their first exit in the order of the stream. Every `ROUND` of them have a
rule, which follows from how many left there in all rounds before, and from where the others
left in those rounds whose images are no longer under way. An engine takes the first exits
in order, and lets images enter when those of long ago have left (`Course.opens`). So a
stream ends the same however its launches happened to be timed, and its batches stay full.
Nothing is kept from one stream to the next.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from anchornet_jax.inference import exit_table, fitting, stopping

ROUND = 16  # images that leave by the same rule
RANGE = 2.0  # a rule is fitted to budget / RANGE at least, budget * RANGE at most
RULES = 33  # of a path
HORIZON = 64  # images over which what was spent too much is saved again
PRIOR = 128  # images for which the stream is first taken to be like the calibration
MEMORY = 1024  # images after which what a stream costs is forgotten, to 1 / e


class Place(NamedTuple):
    """A place on the path: a rule, and what it came to on the calibration images.

    rule: fitted, or between two that were.
    cost: mean of all images.
    later: mean of those that went on after the first exit.
    """

    rule: stopping.Rule
    cost: float
    later: float


class Control:
    """A rule that moves so that a stream's mean cost comes out at its budget.

    Attributes:
      budget: mean cost per image.
      cost: [E] of leaving at each exit.
      unit: of both.
      rule: where a stream begins, fitted to the budget.
    """

    def __init__(self, table: exit_table.ExitTable, budget: float, method="value"):
        """Fit the rules.

        Args:
          table: calibration images, in whose unit of cost the budget is.
          budget: mean cost per image.
          method: as of `fitting.fit`.

        Raises:
          ValueError: as `fitting.fit`, or for a budget that is not finite.
        """
        if not np.isfinite(budget):
            raise ValueError(f"`budget` is {budget}; allowed are finite numbers")
        self.budget, self.cost, self.unit = float(budget), table.cost, table.unit
        low = max(budget / RANGE, table.cost[0])
        high = max(min(budget * RANGE, table.cost[-1]), low)
        budgets = np.geomspace(low, high, RULES).clip(low, high)
        (own,) = fitting.fit(table, [budget], method)
        fits = [own, *fitting.fit(table, budgets, method)]
        places = [_place(table, fit.rule) for fit in fits]
        self.rule = own.rule
        self._path = []  # of rising cost
        for place in sorted(places, key=lambda place: place.cost):
            if not self._path or place.cost > self._path[-1].cost:
                self._path.append(place)

    @property
    def steps(self) -> int:
        """Return E - 1, as of a rule."""
        return self.rule.steps

    @property
    def features(self) -> tuple[str, ...]:
        """Return the features that the rules see."""
        return self.rule.features

    def at(self, cost: float) -> Place:
        """Return the place of about that cost; beyond the ends of the path there is none."""
        costs = [place.cost for place in self._path]
        k = int(np.searchsorted(costs, cost))
        if k in (0, len(costs)):
            return self._path[min(k, len(costs) - 1)]
        cheap, dear = self._path[k - 1 : k + 1]
        share = (cost - cheap.cost) / (dear.cost - cheap.cost)
        return Place(
            cheap.rule.blend(dear.rule, np.full(self.steps, share)),
            cost,
            cheap.later + share * (dear.later - cheap.later),
        )

    def begin(self, under_way: int = 1, known: Sequence[int] = ()) -> "Course":
        """Begin a stream.

        Args:
          under_way: images that may have passed the first exit and not have left.
          known: exits at which the first images left, of a stream that goes on.
        """
        return Course(self, under_way, known)

    def exits(
        self,
        confidence: np.ndarray,
        seen: Mapping[str, np.ndarray] | None = None,
        *,
        under_way: int = 1,
    ) -> np.ndarray:
        """Return the exits ([n] int, 0-based) of a stream with known confidence [n, E].

        Args:
          confidence: of the images in the order of the stream.
          seen: {feature: [n, E]} of them.
          under_way: as of `begin`.
        """
        course, exits = self.begin(under_way), np.zeros(len(confidence), int)
        for start in range(0, len(confidence), ROUND):
            rows = np.arange(start, min(start + ROUND, len(confidence)))
            own = {name: values[rows] for name, values in (seen or {}).items()}
            first = {name: values[:, :1] for name, values in own.items()}
            course.leaves(0, rows, confidence[rows, :1], first)
            exits[rows] = course.place(start).rule.exits(confidence[rows], own)
            course.left(rows, exits[rows])
        return exits


def _place(table, rule) -> Place:
    exits = rule.exits(table.confidence, table.seen)
    cost, later = table.cost[exits], exits > 0
    return Place(
        rule, cost.mean(), cost[later].mean() if later.any() else table.cost[0]
    )


class Round:
    """Images that leave by the same rule.

    place: the rule, None as long as it is not known.
    at_once: how many left at the first exit.
    left: [E] how many have left at each.
    """

    def __init__(self, exits: int):
        """Begin without any."""
        self.place, self.at_once, self.left = None, 0, np.zeros(exits, int)


class Course:
    """One stream under control, as `stopping.Constant` is one under a rule."""

    def __init__(self, control: Control, under_way: int, known: Sequence[int] = ()):
        """Begin after images whose exits are known."""
        self._control, self._before = control, len(known)
        self._late = -(-under_way // ROUND)  # rounds whose images may be under way
        self._rounds = {}  # by their number, those that were not counted yet
        self._decided = len(known)  # images that have come to the first exit
        self._whole = 0  # first rounds all of whose images have left
        self._next = 0  # first round without a rule
        self._surplus = 0.0  # spent too much in the rounds that were counted
        # What images cost lately, and what was expected: all, and after the first exit.
        self._lately = np.full((2, 2), PRIOR * control.budget)
        for number, exit in enumerate(known):
            self._round(number // ROUND).at_once += exit == 0
        self.left(np.arange(-len(known), 0), known)

    def opens(self, number: int) -> bool:
        """Say whether an image may enter: enough of those long before it have left."""
        return self._of(number) <= self._whole + self._late

    def in_turn(self, number: int) -> bool:
        """Say whether an image may leave at the first exit: all before it were there."""
        return self._before + number == self._decided

    def place(self, number: int) -> Place:
        """Return the rule of an image in turn, or of one that was, and its cost."""
        wanted = self._of(number)
        while self._next <= wanted:
            if self._next > self._late:
                self._count(self._rounds.pop(self._next - self._late - 1))
            self._round(self._next).place = self._control.at(self._aim())
            self._next += 1
        return self._rounds[wanted].place

    def leaves(self, step: int, numbers, confidence, seen=None) -> np.ndarray:
        """Return which images leave at an exit, [b] bool, see `stopping.Rule.leaves`.

        At the first exit they are in turn, in their order.
        """
        leaves, rounds = np.zeros(len(numbers), bool), self._of(numbers)
        for one in np.unique(rounds):
            rows = rounds == one
            rule = self.place(numbers[rows][0]).rule
            own = {name: values[rows] for name, values in (seen or {}).items()}
            leaves[rows] = rule.leaves(step, confidence[rows], own)
            if step == 0:
                self._decided += rows.sum()
                self._round(one).at_once += leaves[rows].sum()
        return leaves

    def left(self, numbers: np.ndarray, exits: np.ndarray) -> None:
        """Take note of the exits [b] of images that have left."""
        for one, exit in zip(self._of(numbers), exits):
            self._round(one).left[exit] += 1
        while self._round(self._whole).left.sum() == ROUND:
            self._whole += 1

    def _of(self, numbers):
        """Return the numbers of the rounds of images."""
        return (self._before + numbers) // ROUND

    def _round(self, one: int) -> Round:
        return self._rounds.setdefault(int(one), Round(len(self._control.cost)))

    def _count(self, one: Round) -> None:
        """Count a round, all of whose images have left."""
        spent = one.left * self._control.cost  # [E]
        expected = ROUND * one.place.cost, (ROUND - one.at_once) * one.place.later
        self._lately *= np.exp(-ROUND / MEMORY)
        self._lately += [(spent.sum(), spent[1:].sum()), expected]
        self._surplus += spent.sum() - ROUND * self._control.budget

    def _aim(self) -> float:
        """Return what the next round is to cost on the calibration images.

        Images here cost `harder` times as much as those. What was spent too much, also by
        those under way, is saved again over the horizon.
        """
        harder, later = self._lately[0] / self._lately[1]
        surplus, budget = self._surplus, self._control.budget
        for number in range(max(0, self._next - self._late), self._next):
            one = self._rounds[number]
            surplus += one.at_once * self._control.cost[0]
            surplus += (ROUND - one.at_once) * one.place.later * later
            surplus -= ROUND * budget
        return (budget - surplus / HORIZON) / harder
