"""Stopping rules: decide at which exit each image stops.

A rule decides step by step from the confidences so far (Localizing Semantic Patches,
2022, Sec. 3.4), so a running engine can follow it. One that sees more than these names
the features that it needs of each step (`methods.method.features`). `fitting` fits rules
to a budget.

    rule = stopping.ThresholdRule([0.7, 0.9])
    rule.leaves(0, confidence[:, :1])  # [b] bool, after the first of three inputs
    exits.score(table, rule.exits(table.confidence)).accuracy
"""

from collections.abc import Mapping, Sequence

import numpy as np

from anchornet_jax.inference.exit_table import NEVER

ALWAYS = -1.0  # a threshold that every confidence exceeds


class Rule:
    """When to leave: parameters per exit but the last, which takes everyone left.

    Subclasses say what the parameters mean, and what they are called in JSON.

    features: names of what it sees beside the confidence.
    """

    name: str
    field: str
    features: tuple[str, ...] = ()

    def __init__(self, parameters):
        """Take the parameters, [E - 1, ...], first exit first.

        Raises:
            ValueError: an exit has too many or too few parameters, or some not finite.
        """
        self.parameters = [np.asarray(p, float) for p in parameters]
        for step, found in enumerate(self.parameters):
            if found.shape != self._shape(step) or not np.isfinite(found).all():
                raise ValueError(
                    f"`{self.field}` of exit {step + 1} is {found.tolist()}; give "
                    f"finite numbers of shape {self._shape(step)}"
                )

    @property
    def steps(self) -> int:
        """Return E - 1, the number of exits at which there is something to decide."""
        return len(self.parameters)

    def leaves(
        self,
        step: int,
        confidence: np.ndarray,
        seen: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return which images leave at an exit, [b] bool.

        Args:
            step: the exit, 0-based.
            confidence: [b, step + 1] at the exits up to this one.
            seen: {feature: [b, step + 1]}, of the rule's `features` and maybe others.

        Raises:
            ValueError: a step that the rule does not have, a history of other length, or
                a feature that is missing.
        """
        history = np.asarray(confidence, float)
        if not 0 <= step <= self.steps or history.shape[1:] != (step + 1,):
            raise ValueError(
                f"`step` is {step} and `confidence` has shape {history.shape}; the rule "
                f"has steps 0 to {self.steps}, and `confidence` is [b, step + 1]"
            )
        if step == self.steps:
            return np.ones(len(history), bool)
        if missing := set(self.features) - set(seen or ()):
            raise ValueError(
                f"`seen` has no {' and no '.join(sorted(missing))}; the rule needs "
                f"{', '.join(self.features)}"
            )
        own = [np.asarray(seen[name], float)[:, step] for name in self.features]
        return self._leaves(self.parameters[step], history, own)

    def begin(self, under_way: int = 1, known=()) -> "Constant":
        """Begin a stream, all of whose images leave by this rule, see `Constant`."""
        return Constant(self)

    def exits(
        self, confidence: np.ndarray, seen: Mapping[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Return the exit ([n] int, 0-based) of images with known confidence [n, E].

        What else is `seen` of them is {feature: [n, E]}.
        """
        exit = np.full(len(confidence), self.steps)
        for step in reversed(range(self.steps)):
            exit[self.leaves(step, confidence[:, : step + 1], seen)] = step
        return exit

    def blend(self, other: "Rule", shares) -> "Rule":
        """Return the rule that lies `shares` ([E - 1], per exit) of the way to `other`."""
        mixed = zip(self.parameters, other.parameters, shares)
        return self._like([a + s * (b - a) for a, b, s in mixed])

    def _like(self, parameters) -> "Rule":
        return type(self)(parameters)

    @classmethod
    def parts(cls) -> tuple[str, ...]:
        """Return the keys of the lists that `to_json` says, as they are given."""
        return (cls.field,)

    def to_json(self) -> dict:
        """Return plain data from which `from_json` makes the same rule."""
        return {"rule": self.name, self.field: [p.tolist() for p in self.parameters]}


class ThresholdRule(Rule):
    """Leave when the confidence exceeds the exit's threshold (Algorithm 1).

    parameters: E - 1 thresholds.
    """

    name, field = "thresholds", "thresholds"

    def _shape(self, step):
        return ()

    def _leaves(self, threshold, history, seen):
        return history[:, -1] > threshold


class ValueRule(Rule):
    """Leave when going on is worth nothing.

    With d = sqrt(1 - confidence), going on from exit t = 1 … E - 1 is worth
    w_0 + w_1 d_t^2 + w_2 d_1 + … + w_(t+1) d_t. The root resolves confidences near 1,
    where summed logits put most images.

    parameters: E - 1 lists of weights, t + 2 of them at exit t.
    """

    name, field = "value", "weights"

    def _shape(self, step):
        return (step + 3,)

    def _leaves(self, weights, history, seen):
        # Summed term by term: a matrix product may round differently per batch size.
        known = [*features(history, range(history.shape[1])), *seen]
        return sum(w * f for w, f in zip(weights, known)) <= 0


class FeatureRule(ValueRule):
    """A value rule that also sees features of the step, each with a weight of its own.

    parameters: E - 1 lists of weights, at exit t those of a value rule and then one for
        each feature.
    """

    name = "features"

    def __init__(self, parameters, features: Sequence[str]):
        """Take the parameters and the names of the features; errors as of `Rule`."""
        self.features = tuple(features)
        super().__init__(parameters)

    def _shape(self, step):
        return (step + 3 + len(self.features),)

    def _like(self, parameters):
        return type(self)(parameters, self.features)

    @classmethod
    def parts(cls) -> tuple[str, ...]:
        """Return the keys of the lists that `to_json` says, as they are given."""
        return (cls.field, "features")

    def to_json(self) -> dict:
        """Return plain data from which `from_json` makes the same rule."""
        return super().to_json() | {"features": list(self.features)}


class Constant:
    """A stream of images that leave by the same rule.

    What an engine asks of the rules of a stream; where they change as it goes it is
    `control.Course`, which says more.
    """

    def __init__(self, rule: Rule):
        """Begin a stream."""
        self._rule = rule

    def opens(self, number: int) -> bool:
        """Say whether the image of that number may enter."""
        return True

    def in_turn(self, number: int) -> bool:
        """Say whether it may leave at the first exit."""
        return True

    def leaves(self, step: int, numbers, confidence, seen=None) -> np.ndarray:
        """Return which images leave at an exit, [b] bool, see `Rule.leaves`."""
        return self._rule.leaves(step, confidence, seen)

    def left(self, numbers: np.ndarray, exits: np.ndarray) -> None:
        """Take note of the exits [b] of images that have left."""


def fixed(inputs: int, total: int) -> ThresholdRule:
    """Return the rule by which every image leaves after the same number of inputs.

    Raises:
        ValueError: there are not that many inputs among `total`.
    """
    if not 1 <= inputs <= total:
        raise ValueError(f"`inputs` is {inputs}; allowed is 1 to {total}")
    return ThresholdRule([NEVER] * (inputs - 1) + [ALWAYS] * (total - inputs))


def from_json(data: dict) -> Rule:
    """Make the rule that `to_json` described.

    Raises:
        ValueError: `data` describes no rule.
    """
    for kind in (ThresholdRule, ValueRule, FeatureRule):
        parts = [data.get(part) for part in kind.parts()]
        if data.get("rule") == kind.name and all(isinstance(p, list) for p in parts):
            return kind(*parts)
    raise ValueError(f"`data` is {data!r}; it does not come from a rule's `to_json`")


def features(confidence, past):
    doubt = np.sqrt(np.maximum(1 - confidence, 0))
    constant = np.ones(len(doubt))
    return [constant, doubt[:, -1] ** 2, *(doubt[:, t] for t in past)]
