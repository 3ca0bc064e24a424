"""Exit tables: what a network knew at each exit, and what leaving there costs.

Localizing Semantic Patches (2022), Sec. 3.4, Algorithm 1. A table holds, per image and
exit, how confident the network was and whether it was right, and per exit the
cumulative cost of leaving there, in any unit (multiply-adds, milliseconds). It may come
from any network. `fitting` fits rules to such a table.

    table = exits.ExitTable.load("table.npz", cost=[0.79, 1.64, 2.43])
    exits.apply(table, [0.7, 0.9]).accuracy
    exits.anytime(table)
    table.with_cost([0.4, 1.1, 1.5], "ms")  # as measured on the device at hand
"""

import csv
import dataclasses
import os
import pathlib

import numpy as np

from anchornet_jax.runtime import files

NEVER = 2.0  # a threshold that no confidence exceeds: nobody leaves there
ROUNDING = 1e-5  # a float32 softmax may exceed 1 by a few units in the last place


@dataclasses.dataclass(frozen=True, eq=False)
class ExitTable:
    """Confidence and correctness of n images at E exits, and the cost of each exit.

    Give `correct`, or `predicted` and `label`, from which it is derived.

    confidence: [n, E], in [0, 1].
    cost: [E] cumulative cost of leaving at each exit, positive and increasing.
    correct: [n, E] bool.
    predicted: [n, E] int class at each exit, or None.
    label: [n] int, or None.
    features: [n, E, F] what else is known of an image at an exit, or None; for rules that
        see more than the confidence.
    feature_names: [F], of their last axis.
    unit: of the cost, such as "G multiply-adds" or "ms"; said wherever a cost is.

    Raises:
        ValueError: arrays that disagree in shape or hold impossible values.
    """

    confidence: np.ndarray
    cost: np.ndarray
    correct: np.ndarray | None = None
    predicted: np.ndarray | None = None
    label: np.ndarray | None = None
    unit: str = ""
    features: np.ndarray | None = None
    feature_names: tuple[str, ...] = ()

    def __post_init__(self):
        confidence = _confidence(self.confidence)
        fields = {"confidence": confidence, "cost": _cost(self.cost, confidence)}
        fields["unit"] = str(self.unit)
        n = len(confidence)
        if (self.predicted is None) != (self.label is None):
            raise ValueError("`predicted` and `label` must be given together")
        if self.predicted is not None:
            predicted = _classes("predicted", self.predicted, confidence.shape)
            label = _classes("label", self.label, (n,))
            fields |= {"predicted": predicted, "label": label}
            fields["correct"] = predicted == label[:, None]
        if self.correct is not None:
            correct = _correct(self.correct, confidence.shape)
            if (correct != fields.get("correct", correct)).any():
                raise ValueError("`correct` disagrees with `predicted` and `label`")
            fields["correct"] = correct
        if "correct" not in fields:
            raise ValueError("give `correct`, or `predicted` and `label`")
        names = tuple(map(str, self.feature_names))
        fields["feature_names"] = names
        if self.features is not None or names:
            fields["features"] = _features(self.features, confidence.shape, names)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def seen(self) -> dict[str, np.ndarray]:
        """Return each feature [n, E] by its name, as `stopping.Rule.exits` takes them."""
        return {
            name: self.features[..., k] for k, name in enumerate(self.feature_names)
        }

    def select(self, rows=slice(None), exits: int | None = None) -> "ExitTable":
        """Return the table of some rows (indices, mask or slice) and the first exits."""
        keep = {"cost": self.cost[:exits], "unit": self.unit}
        keep["feature_names"] = self.feature_names
        for name in ("confidence", "correct", "predicted", "features"):
            value = getattr(self, name)
            keep[name] = None if value is None else value[rows, :exits]
        keep["label"] = None if self.label is None else self.label[rows]
        return ExitTable(**keep)

    def with_cost(self, cost, unit: str) -> "ExitTable":
        """Return the table with other costs [E], and all budgets in their unit."""
        return dataclasses.replace(self, cost=cost, unit=unit)

    def save(self, path: str | os.PathLike) -> None:
        """Write an `.npz` of the fields that are present, whole or not at all."""
        path = pathlib.Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"`path` is {str(path)!r}; a table is saved as .npz")
        arrays = {k: v for k, v in vars(self).items() if v is not None}
        if self.features is None:
            del arrays["feature_names"]
        files.write_npz(path, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike, *, cost=None, unit="") -> "ExitTable":
        """Read a table from `.npz` or `.csv`.

        An `.npz` holds arrays named as the fields. A `.csv` has a header and one line
        per image, with columns `confidence_1` … `confidence_E`, then `correct_1` …
        (0 or 1), or `predicted_1` … and `label`, and optionally `cost_1` …, the same on
        every line, and `feature_NAME_1` … of any names. Other arrays and columns are ignored.

        Args:
            path: the file.
            cost: [E]; needed when the file has no cost, and preferred to the file's.
            unit: of the cost; an `.npz` may name its own.

        Raises:
            ValueError: not such a file, or what it holds is no exit table.
        """
        path = pathlib.Path(path)
        if path.suffix not in READERS:
            raise ValueError(f"`path` is {str(path)!r}; choose one of {[*READERS]}")
        try:
            fields = READERS[path.suffix](path)
            if cost is not None:
                fields |= {"cost": cost, "unit": unit}
            if missing := {"confidence", "cost"} - fields.keys():
                raise ValueError(f"no {' and no '.join(sorted(missing))} in it")
            return cls(**{"unit": unit, **fields})
        except (ValueError, TypeError) as error:
            named = str(error).startswith(str(path))
            raise ValueError(str(error) if named else f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What leaving at given exits comes to.

    exit: [n] int, 0-based.
    accuracy: share of the images that are right where they leave.
    mean_cost: per image, in the unit of the table's cost.
    shares: [E] share of the images that leave at each exit.
    expected_inputs: E(t), the mean number of inputs, the first exit counting 1.
    """

    exit: np.ndarray
    accuracy: float
    mean_cost: float
    shares: np.ndarray
    expected_inputs: float


def score(table: ExitTable, exit: np.ndarray) -> Outcome:
    """Score the table's images when image i leaves at `exit[i]` ([n] int, 0-based)."""
    shares = np.bincount(exit, minlength=len(table.cost)) / len(exit)
    return Outcome(
        exit=exit,
        accuracy=float(table.correct[np.arange(len(exit)), exit].mean()),
        mean_cost=float(shares @ table.cost),
        shares=shares,
        expected_inputs=float(exit.mean() + 1),
    )


def apply(table: ExitTable, thresholds) -> Outcome:
    """Leave at the first exit whose confidence exceeds its threshold (Algorithm 1).

    Args:
        table: n images, E exits.
        thresholds: [E - 1]; the last exit takes everyone left. `NEVER` skips an exit.

    Raises:
        ValueError: thresholds of another length, or NaN.
    """
    thresholds = np.asarray(thresholds, float)
    wanted = len(table.cost) - 1
    if thresholds.shape != (wanted,) or np.isnan(thresholds).any():
        raise ValueError(
            f"`thresholds` is {thresholds.tolist()}; give {wanted} numbers, one for "
            f"each of the {wanted + 1} exits but the last"
        )
    leaves = table.confidence > np.append(thresholds, -np.inf)
    return score(table, leaves.argmax(axis=1))


def _read_npz(path):
    found = files.read_npz(path)
    names = [field.name for field in dataclasses.fields(ExitTable)]
    return {name: found[name] for name in names if name in found}


def _read_csv(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line]
    if len(lines) < 2:
        raise ValueError("no header and lines of numbers in it")
    header, *rows = lines
    for row, cells in enumerate(rows):
        if len(cells) != len(header):
            raise ValueError(
                f"image {row} has {len(cells)} columns, the header {len(header)}"
            )
    columns, fields = dict(zip(header, zip(*rows))), {}
    for name in ("confidence", "correct", "predicted", "cost"):
        if found := _numbered(columns, name):
            fields[name] = np.stack(found, axis=1)
    named = [c.removeprefix("feature_") for c in columns if c.startswith("feature_")]
    if names := tuple(dict.fromkeys(name.rpartition("_")[0] for name in named)):
        found = [np.stack(_numbered(columns, f"feature_{name}"), 1) for name in names]
        if len({one.shape for one in found}) > 1:
            raise ValueError(f"columns {named}; every feature needs as many exits")
        fields |= {"features": np.stack(found, axis=2), "feature_names": names}
    if "label" in columns:
        fields["label"] = _numbers("label", columns["label"])
    if "cost" in fields:
        if (fields["cost"] != fields["cost"][:1]).any():
            raise ValueError("`cost` differs between lines; it belongs to the exits")
        fields["cost"] = fields["cost"][0]
    return fields


def _numbered(columns, name) -> list[np.ndarray]:
    """Return the columns NAME_1, NAME_2 … as numbers."""
    found = [c for c in columns if c.startswith(f"{name}_")]
    wanted = [f"{name}_{t + 1}" for t in range(len(found))]
    if sorted(found) != sorted(wanted):
        raise ValueError(f"columns {found}; they must be numbered 1, 2, …")
    return [_numbers(column, columns[column]) for column in wanted]


def _numbers(name, cells):
    try:
        return np.array(cells, float)
    except ValueError as error:
        raise ValueError(f"column `{name}`: {error}") from error


READERS = {".npz": _read_npz, ".csv": _read_csv}


def _confidence(confidence):
    confidence = np.asarray(confidence, float)
    if confidence.ndim != 2 or not confidence.size:
        raise ValueError(
            f"`confidence` has shape {confidence.shape}; give [n, E], n > 0"
        )
    bad = ~((confidence >= -ROUNDING) & (confidence <= 1 + ROUNDING))  # NaN included
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"`confidence` is {confidence[row, column]} for image {row} at exit "
            f"{column + 1}; every value must be in [0, 1]"
        )
    return np.asfortranarray(confidence.clip(0, 1))  # rules read it exit by exit


def _cost(cost, confidence):
    cost = np.asarray(cost, float)
    if cost.shape != confidence.shape[1:]:
        raise ValueError(
            f"`cost` has shape {cost.shape}; `confidence` has {confidence.shape[1]} exits"
        )
    if not (np.isfinite(cost).all() and (np.diff(cost, prepend=0) > 0).all()):
        raise ValueError(
            f"`cost` is {cost.tolist()}; it must be positive, finite and increasing"
        )
    return cost


def _correct(correct, shape):
    correct = np.asarray(correct)
    if correct.shape != shape:
        raise ValueError(f"`correct` has shape {correct.shape}; `confidence` {shape}")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("`correct` must hold booleans, or 0 and 1")
    return correct.astype(bool)


def _features(features, shape, names):
    found = np.asarray(np.nan if features is None else features, float)
    if found.shape != (*shape, len(names)) or len(set(names)) < len(names):
        raise ValueError(
            f"`features` has shape {found.shape} and `feature_names` is {names}; give "
            f"[n, E, F] with {shape} first, and F different names"
        )
    if not np.isfinite(found).all():
        row, exit, k = np.argwhere(~np.isfinite(found))[0]
        raise ValueError(
            f"`features` holds {found[row, exit, k]} as {names[k]} of image {row} at "
            f"exit {exit + 1}; every value must be finite"
        )
    return found


def _classes(name, values, shape):
    values = np.asarray(values)
    if values.shape != shape:
        raise ValueError(f"`{name}` has shape {values.shape}; it must be {shape}")
    bad = ~((values >= 0) & (values == np.floor(values)))  # NaN included
    if bad.any():
        raise ValueError(f"`{name}` holds {values[bad][0]}; a class is an integer >= 0")
    return values.astype(int)
