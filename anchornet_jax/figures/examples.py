"""Examples on disk: some test images, and what a method made of them.

arrays = examples.read("out")  # from out/examples.npz
pictures.examples(arrays, classes, exits)
"""

import os
import pathlib

import numpy as np

from anchornet_jax.runtime import files

# Axis letters of the package; E counts exits. `?` marks what may be absent: without
# boxes nothing is drawn but the image.
ARRAYS = {
    "image": "BHW3",
    "label": "B",
    "predicted": "BE",
    "confidence": "BE",
    "exit": "B",
    "boxes?": "BE4",
    "heatmap?": "BYX",
    "extent?": "B4",
    "box?": "B4",
}


def read(
    directory: str | os.PathLike, classes: int, exits: int
) -> dict[str, np.ndarray]:
    """Read the `examples.npz` of a directory.

    Args:
      directory: where an evaluation wrote it.
      classes: how many there are.
      exits: how many the method has.

    Raises:
      ValueError: if it is missing or holds something else; it names file and array.
    """
    path = pathlib.Path(directory, "examples.npz")
    found = files.read_npz(path)
    arrays, lengths = {}, {"3": 3, "4": 4, "E": exits}
    for form, letters in ARRAYS.items():
        name = form.rstrip("?")
        if name in found:
            arrays[name] = found[name]
            _measure(arrays[name], letters, lengths, f"{path}: `{name}`")
        elif form == name:
            raise ValueError(f"{path}: `{name}` is missing")
    if ("heatmap" in arrays) != ("extent" in arrays):
        raise ValueError(f"{path}: `heatmap` and `extent` must be there together")
    for name, limit in {"label": classes, "predicted": classes, "exit": exits}.items():
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
