"""What an evaluation leaves in its directory, read back and checked.

`summary.json` holds what `SUMMARY` lists: accuracies, coverage and exits are fractions,
costs multiply-adds or milliseconds per image. `examples.npz` holds some test images and
what the networks made of them, as `EXAMPLES` lists.

    summary, arrays = results.read("out")
"""

import json
import math
import os
import pathlib
import zipfile

import numpy as np

# A list has one entry or more, each of that form; `?` marks what may be null or absent.
COST = {"accuracy": "share", "macs": "number"}
TIMED = COST | {"time_ms?": "number"}
SUMMARY = {
    "classes": ["text"],
    "data": "text",
    "patch_size": "number",
    "fuse": "text",
    "anchornet": COST | {"box_coverage?": "share"},
    "full_image?": TIMED,
    "anytime": [TIMED | {"inputs": "number", "random_patches_accuracy": "share"}],
    "budgeted": [
        {
            "budget_macs": "number",
            "mean_macs": "number",
            "mean_time_ms?": "number",
            "accuracy": "share",
            "exits": ["share"],
            "expected_inputs": "number",
            "thresholds?": ["number"],
        }
    ],
    "exit_time_ms?": ["number"],
    "seconds?": {},
}
ALLOWED = {
    dict: "an object",
    list: "a list that is not empty",
    "text": "text",
    "number": "a finite number",
    "share": "a number from 0 to 1",
}
# Axis letters of the package; Y and X are the rows and columns of the heatmap.
EXAMPLES = {
    "image": "BHW3",
    "heatmap": "BYX",
    "corners": "BK2",
    "valid": "BK",
    "label": "B",
    "predicted": "BE",
    "confidence": "BE",
    "exit": "B",
    "patch_size": "",
    "size?": "B",
    "box?": "B4",
}


def read(directory: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray]]:
    """Read `summary.json` and `examples.npz`.

    Returns:
      The summary, None where an optional part is absent, and the arrays by name.

    Raises:
      ValueError: if a file is missing or holds something else; the message names the
        file and the key.
    """
    directory = pathlib.Path(directory)
    summary = _read_json(directory / "summary.json")
    exits = len(summary["anytime"])
    for i, row in enumerate(summary["budgeted"]):
        if len(row["exits"]) != exits:
            raise ValueError(
                f"{directory / 'summary.json'}: `budgeted[{i}].exits` has "
                f"{len(row['exits'])} shares; `anytime` has {exits} rows"
            )
    classes = len(summary["classes"])
    return summary, _read_npz(directory / "examples.npz", classes)


def _read_json(path: pathlib.Path) -> dict:
    try:
        summary = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no summary: {error}") from error
    try:
        summary = _checked(summary, SUMMARY, "summary")
        for stage, seconds in (summary["seconds"] or {}).items():
            _checked(seconds, "number", f"summary.seconds.{stage}")
        return summary
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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
    if isinstance(form, (dict, list)):
        return isinstance(value, type(form)) and value != []
    if form == "text":
        return isinstance(value, str)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        return False
    return form == "number" or 0 <= value <= 1


def _read_npz(path: pathlib.Path, classes: int) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            found = dict(file)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no examples: {error}") from error
    arrays, lengths = {}, {"2": 2, "3": 3, "4": 4}
    for form, letters in EXAMPLES.items():
        name = form.rstrip("?")
        if name in found:
            arrays[name] = found[name]
            _measure(arrays[name], letters, lengths, f"{path}: `{name}`")
        elif form == name:
            raise ValueError(f"{path}: `{name}` is missing")
    if lengths["E"] > lengths["K"] + 1:
        raise ValueError(
            f"{path}: `predicted` has {lengths['E']} exits; the glance and "
            f"{lengths['K']} patches make at most {lengths['K'] + 1}"
        )
    limits = {"label": classes, "predicted": classes, "exit": lengths["E"]}
    for name, limit in limits.items():
        if not ((arrays[name] >= 0) & (arrays[name] < limit)).all():
            raise ValueError(f"{path}: `{name}` has values outside 0 to {limit - 1}")
    return arrays


def _measure(array, letters: str, lengths: dict[str, int], place: str) -> None:
    """Note the lengths of axes that are new; raise if the others differ."""
    for letter, length in zip(letters, array.shape):
        lengths.setdefault(letter, length)
    shape = [lengths.get(letter) for letter in letters]
    if list(array.shape) != shape:
        raise ValueError(f"{place} has shape {list(array.shape)}; allowed is {shape}")
