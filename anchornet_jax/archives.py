"""Archives that a user downloads: checked before a data set is made from them.

TFDS makes a data set from whatever is there: with one archive of two it leaves a split
out, and it reads a cut-off one to the point where it ends. So they are checked first,
by their tables of contents, which takes seconds.
"""

import os
import tarfile

from tensorflow_datasets import core

ARCHIVES = {  # data set: (files, who gives them)
    "imagenet2012": (
        ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
        "https://image-net.org/download-images, after registration",
    ),
}
BLOCK = 512  # bytes; a tar file is made of blocks and ends with two of zeros


def check(name: str, directory: str) -> None:
    """Check that the archives of a data set are there and whole.

    Args:
      name: of the data set; one that needs no archives passes.
      directory: local, or whatever TFDS can read.

    Raises:
      ValueError: if one is missing, damaged or cut off; it names the directory, what is
        wrong, all files wanted and where they come from.
    """
    files, origin = ARCHIVES.get(name, ((), ""))
    for file in files:
        problem = _problem(core.Path(directory) / file)
        if problem:
            raise ValueError(
                f"`manual_dir` is {os.fspath(directory)!r}, where {file} {problem}; "
                f"{name} is made from {' and '.join(files)} in one directory, as they "
                f"come from {origin}"
            )


def _problem(path) -> str:
    """Return what is wrong with a tar file, nothing if it is whole."""
    if not path.exists():
        return "is missing"
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = tar.getmembers()
            file.seek(0, os.SEEK_END)
            size = file.tell()
    except tarfile.TarError as error:
        return f"is damaged or incomplete ({error})"
    if not members:
        return "is empty"
    last = members[-1]
    blocks = -(-last.size // BLOCK) + 2
    return "is cut off" if size < last.offset_data + blocks * BLOCK else ""
