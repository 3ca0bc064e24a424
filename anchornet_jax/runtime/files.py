"""Files that are written whole or not at all, and noticed if they were changed since.

`whole` writes beside the file and renames; what a killed program leaves behind ends with
`PARTIAL`. JSON that is read back is sealed: it holds the SHA-256 of the rest of it.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
import zipfile
import zlib

import numpy as np

PARTIAL = ".partial"
DIGEST = "sha256"  # the key of a sealed object's digest


@contextlib.contextmanager
def whole(path, mode: str = "w"):
    """Open a file that appears at `path` when all is written, or not at all."""
    path = pathlib.Path(path)
    with tempfile.NamedTemporaryFile(
        mode, dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL, delete=False
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


def remove_partial(directory) -> None:
    """Remove what killed programs have left; nobody else may be writing there."""
    for path in pathlib.Path(directory).rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def write_json(path, value) -> None:
    """Write a JSON file, for people and other programs."""
    with whole(path) as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def write_sealed(path, value: dict) -> None:
    """Write an object that is read back, with its own digest."""
    value = json.loads(json.dumps(value))  # as it will be read: keys are text
    write_json(path, value | {DIGEST: digest(value)})


def read_sealed(path) -> dict:
    """Read an object that `write_sealed` wrote, without its digest.

    Raises:
      ValueError: if it is missing, no JSON, or not what was written; it names the file.
    """
    try:
        value = json.loads(pathlib.Path(path).read_bytes())
        known = value.pop(DIGEST)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {reason}") from None
    except (AttributeError, LookupError, TypeError):
        raise ValueError(f"{path} is none of this project's files") from None
    if known != digest(value):
        raise ValueError(f"{path} is not what was written: it was changed or damaged")
    return value


def plain_name(name: str) -> str:
    """Return a file's name that metadata gives, if it stays in its directory.

    Raises:
      ValueError: for a path.
    """
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or "/" in name
        or "\\" in name
    ):
        raise ValueError(f"{name!r} is no name of a file in its directory")
    return name


def digest(value: dict) -> str:
    """Return the SHA-256 of an object as JSON, in whatever order its keys are."""
    plain = {key: part for key, part in value.items() if key != DIGEST}
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# What damaged archives were seen to raise in `np.load`.
DAMAGED = (
    *(OSError, ValueError, TypeError, LookupError, EOFError, SyntaxError),
    *(NotImplementedError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error),
)


def read_npz(path) -> dict[str, np.ndarray]:
    """Read what `write_npz` wrote; objects, which would run as code, are refused.

    Raises:
      ValueError: if it is missing or damaged; it names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except DAMAGED as error:
        raise ValueError(f"{path} holds no arrays, or is damaged: {error}") from error


def write_npz(path, **arrays) -> None:
    """Write NumPy arrays, compressed."""
    with whole(path, "wb") as file:
        np.savez_compressed(file, **arrays)
