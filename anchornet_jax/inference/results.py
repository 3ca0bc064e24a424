"""What an evaluation found: points of curves, and all of them together.

An evaluation writes `summary.json` with `Evaluation.to_json`; export, report, plots and
comparison read it back with `from_json`, which checks it. Accuracies and shares are
fractions, costs multiply-adds or milliseconds per image.
"""

import dataclasses
import math
import os
import pathlib

import numpy as np

from anchornet_jax.runtime import files

BINS = 15  # of a reliability, as in its paper


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a curve: what leaving by a rule comes to.

    Attributes:
      accuracy: top-1 on the test images.
      cost: mean per image, in `unit`.
      exits: [E] share of the images that leave at each exit.
      time_ms: mean milliseconds per image, None if not measured.
      unit: of `cost` and `budget`: multiply-adds, or what an exit table was given.
      budget: that the rule was fitted to, None where all images leave at one exit.
      binding: whether the rule spends its budget, see `fitting.Fit`.
      calibration_accuracy: on the images that the rule was fitted to.
      calibration_cost: mean cost there.
      rule: `stopping.Rule.to_json`.
    """

    accuracy: float
    cost: float
    exits: list[float]
    unit: str = "multiply-adds"
    time_ms: float | None = None
    budget: float | None = None
    binding: bool | None = None
    calibration_accuracy: float | None = None
    calibration_cost: float | None = None
    rule: dict | None = None

    @property
    def steps(self) -> float:
        """Return E(t), the mean number of steps taken (2022, Fig. 7)."""
        return sum(t * share for t, share in enumerate(self.exits, 1))

    @property
    def decided_by(self) -> str:
        """Name the rule and what it sees of a step; empty where there is none."""
        if self.rule is None:
            return ""
        seen = ", ".join(["confidence", *self.rule.get("features", [])])
        return f"{self.rule.get('rule')} on {seen}"

    def to_json(self) -> dict:
        """Return plain data, without what is not known."""
        return {k: v for k, v in vars(self).items() if v is not None}

    @classmethod
    def from_json(cls, data: dict, key: str = "point") -> "Point":
        """Read what `to_json` returned.

        Raises:
          ValueError: it names the key, which begins with `key`.
        """
        return cls(**_checked(data, POINT, key))


@dataclasses.dataclass(frozen=True)
class Reference:
    """Another method on the same images, all of which leave at the same exit.

    Attributes:
      exits: names of its exits.
      anytime: a point for each.
      peak_bytes: as of `Evaluation`.
    """

    exits: list[str]
    anytime: list[Point]
    peak_bytes: float | None = None

    def to_json(self) -> dict:
        """Return plain data."""
        data = {k: v for k, v in vars(self).items() if v is not None}
        return data | {"anytime": [p.to_json() for p in self.anytime]}

    @classmethod
    def from_json(cls, data: dict, key: str = "reference") -> "Reference":
        """Read what `to_json` returned; raise ValueError as `Point.from_json`."""
        data = _checked(data, REFERENCE, key)
        points = _points(data, key, "anytime")
        return cls(data["exits"], points, data["peak_bytes"])


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How sure the answers at one exit are, and how often they are right.

    Images are put into bins of equal width by their confidence (Guo et al., On
    Calibration of Modern Neural Networks, 2017); bins without images are left out.

    Attributes:
      confidence: [bins] mean.
      accuracy: [bins].
      share: [bins] of the images.
    """

    confidence: list[float]
    accuracy: list[float]
    share: list[float]

    @property
    def error(self) -> float:
        """Return the expected calibration error."""
        bins = zip(self.confidence, self.accuracy, self.share)
        return sum(share * abs(sure - right) for sure, right, share in bins)

    def to_json(self) -> dict:
        """Return plain data."""
        return vars(self)

    @classmethod
    def from_json(cls, data: dict, key: str = "reliability") -> "Reliability":
        """Read what `to_json` returned; raise ValueError as `Point.from_json`."""
        data = _checked(data, RELIABILITY, key)
        return cls(**{name: data[name] for name in RELIABILITY})


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[Reliability]:
    """Return the reliability of each exit.

    Args:
      confidence: [n, E] in [0, 1].
      correct: [n, E] bool.
    """
    found = []
    for sure, right in zip(np.transpose(confidence), np.transpose(correct)):
        place = np.minimum((sure * BINS).astype(int), BINS - 1)
        counts = np.bincount(place, minlength=BINS)
        some = counts > 0
        mean = [
            (np.bincount(place, values, BINS)[some] / counts[some]).clip(0, 1).tolist()
            for values in (sure, right)
        ]
        found.append(Reliability(*mean, (counts[some] / len(sure)).tolist()))
    return found


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that an evaluation of one method found.

    Attributes:
      data: name of the data set.
      classes: their names.
      method: {"name", and its arguments}.
      exits: their names.
      anytime: a point for each exit, at which all images leave (2022, Fig. 6).
      budgeted: a point for each budget (2022, Fig. 5).
      references: other methods, by the name that figures give them.
      box_coverage: mean share of the object's box inside the first region that was
        chosen; None where the data has no boxes or nothing is chosen.
      reliability: of each exit, on the test images.
      exit_time_ms: what leaving at each exit costs at full batches; None: not measured.
      peak_bytes: device memory of the largest launch of timing's batch, planned by the
        compiler, without images in host memory; None: not asked for.
      device: on which times were measured.
      seconds: {stage: seconds} of a pipeline.
      images: that accuracies rest on; None in results of older versions.
    """

    data: str
    classes: list[str]
    method: dict
    exits: list[str]
    anytime: list[Point]
    budgeted: list[Point]
    references: dict[str, Reference] = dataclasses.field(default_factory=dict)
    box_coverage: float | None = None
    reliability: list[Reliability] | None = None
    exit_time_ms: list[float] | None = None
    peak_bytes: float | None = None
    device: str | None = None
    seconds: dict[str, float] | None = None
    images: float | None = None

    def to_json(self) -> dict:
        """Return plain data, without what is not known."""
        data = {k: v for k, v in vars(self).items() if v is not None}
        for name in ("anytime", "budgeted"):
            data[name] = [point.to_json() for point in data[name]]
        data["references"] = {k: v.to_json() for k, v in self.references.items()}
        if self.reliability is not None:
            data["reliability"] = [found.to_json() for found in self.reliability]
        return data

    @classmethod
    def from_json(cls, data: dict) -> "Evaluation":
        """Read what `to_json` returned; keys of other programs are left out.

        Raises:
          ValueError: it names the key.
        """
        data = _checked(data, EVALUATION, "summary")
        known = {field.name for field in dataclasses.fields(cls)}
        data = {k: v for k, v in data.items() if k in known}
        for name in ("anytime", "budgeted"):
            data[name] = _points(data, "summary", name, len(data["exits"]))
        data["references"] = {
            name: Reference.from_json(found, f"summary.references.{name}")
            for name, found in (data["references"] or {}).items()
        }
        if data["reliability"] is not None:
            data["reliability"] = [
                Reliability.from_json(found, f"summary.reliability[{i}]")
                for i, found in enumerate(data["reliability"])
            ]
        for stage, seconds in (data["seconds"] or {}).items():
            _checked(seconds, "number", f"summary.seconds.{stage}")
        return cls(**data)

    def reference(self) -> tuple[str, Point] | None:
        """Return name and point of the most accurate reference with a single exit."""
        single = [
            (name, found.anytime[0])
            for name, found in self.references.items()
            if len(found.anytime) == 1
        ]
        return max(single, key=lambda pair: pair[1].accuracy, default=None)


def standard_error(share: float, images: float | None) -> float:
    """Return the standard error of a share of so many images; 0 if they are not known."""
    return math.sqrt(share * (1 - share) / images) if images else 0.0


def with_time(points: list[Point], times: list[float] | None) -> list[Point]:
    """Return points with their milliseconds; as they are where these are None."""
    if times is None:
        return points
    return [dataclasses.replace(p, time_ms=t) for p, t in zip(points, times)]


def read(directory: str | os.PathLike) -> Evaluation:
    """Read the `summary.json` of a directory.

    Raises:
      ValueError: if it is missing or holds something else; it names file and key.
    """
    path = pathlib.Path(directory, "summary.json")
    data = files.read_sealed(path)
    try:
        return Evaluation.from_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# A list has one entry or more, each of that form; () is a list that may be empty; `?`
# marks what may be null or absent.
POINT = {
    "accuracy": "share",
    "cost": "number",
    "exits": ["share"],
    "unit": "text",
    "time_ms?": "number",
    "budget?": "number",
    "binding?": "truth",
    "calibration_accuracy?": "share",
    "calibration_cost?": "number",
    "rule?": {},
}
REFERENCE = {"exits": ["text"], "anytime": [{}], "peak_bytes?": "number"}
RELIABILITY = {name: ["share"] for name in ("confidence", "accuracy", "share")}
EVALUATION = {
    "data": "text",
    "classes": ["text"],
    "method": {"name": "text"},
    "exits": ["text"],
    "anytime": [{}],
    "budgeted": (),
    "references?": {},
    "box_coverage?": "share",
    "reliability?": [{}],
    "exit_time_ms?": ["number"],
    "peak_bytes?": "number",
    "device?": "text",
    "seconds?": {},
    "images?": "number",
}
ALLOWED = {
    dict: "an object",
    list: "a list that is not empty",
    tuple: "a list",
    "text": "text",
    "number": "a finite number",
    "share": "a number from 0 to 1",
    "truth": "true or false",
}


def _points(data, key, name, exits: int | None = None) -> list[Point]:
    points = [
        Point.from_json(point, f"{key}.{name}[{i}]")
        for i, point in enumerate(data[name])
    ]
    exits = exits or len(data["exits"])
    for i, point in enumerate(points):
        if len(point.exits) != exits:
            raise ValueError(
                f"`{key}.{name}[{i}].exits` has {len(point.exits)} shares; there are "
                f"{exits} exits"
            )
    return points


def _checked(value, form, key: str):
    """Return `value` if it has that form, absent parts as None; `key` is its place."""
    if not _fits(value, form):
        allowed = ALLOWED[form if isinstance(form, str) else type(form)]
        raise ValueError(f"`{key}` is {value!r}; allowed is {allowed}")
    if isinstance(form, list):
        return [_checked(v, form[0], f"{key}[{i}]") for i, v in enumerate(value)]
    if isinstance(form, dict):
        parts = {
            name.rstrip("?"): _part(value, name, inner, key)
            for name, inner in form.items()
        }
        return value | parts
    return value


def _part(value: dict, name: str, form, key: str):
    name, optional = name.rstrip("?"), name.endswith("?")
    if optional and value.get(name) is None:
        return None
    if name not in value:
        raise ValueError(f"`{key}.{name}` is missing")
    return _checked(value[name], form, f"{key}.{name}")


def _fits(value, form) -> bool:
    if isinstance(form, tuple):
        return isinstance(value, list)
    if isinstance(form, (dict, list)):
        return isinstance(value, type(form)) and value != []
    if form in ("text", "truth"):
        return isinstance(value, str if form == "text" else bool)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        return False
    return form == "number" or 0 <= value <= 1
