"""Files that are written whole or not at all, whatever kills the program."""

import contextlib
import json
import os
import pathlib
import tempfile

import numpy as np


@contextlib.contextmanager
def whole(path, mode: str = "w"):
    """Open a file that appears at `path` when all is written, or not at all."""
    path = pathlib.Path(path)
    with tempfile.NamedTemporaryFile(
        mode, dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def write_json(path, value) -> None:
    """Write a JSON file."""
    with whole(path) as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def write_npz(path, **arrays) -> None:
    """Write NumPy arrays, compressed."""
    with whole(path, "wb") as file:
        np.savez_compressed(file, **arrays)
