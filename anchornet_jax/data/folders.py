"""A user's folder SPLIT/CLASS/IMAGE as a data set: what is in it, and what is not read.

    found = folders.open_folder("flowers")  # flowers/train/rose/1.jpg, flowers/val/…
    found.info.splits, found.info.features["label"].names

Its attributes are those of a TFDS builder that this package uses. Hidden folders and
files, such as `.git`, `.ipynb_checkpoints` and `__MACOSX`, are no classes and no images.

A file `boxes.json` beside the splits may say where the objects are, {"train/rose/1.jpg":
[xmin, ymin, xmax, ymax]} in pixels of the file as it is stored, for as many images as it
likes. No network is shown them: evaluation scores the places that a method chose.
"""

import collections
import json
import math
import os
import random
import types

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from anchornet_jax.runtime import text

FORMATS = (".jpg", ".jpeg", ".png")
VALIDATION = ("val", "validation")  # what people call it
BOXES = "boxes.json"
NO_BOX = (-1.0,) * 4  # of an image whose box is not known
CALIBRATION, TEST = 10, 20  # percent of `train`, where there is no split for it


class Folder:
    """The images of a folder, by split.

    Attributes:
      name: `folder`.
      info: `splits` and `features["label"].names`, as of a TFDS builder.
    """

    name = "folder"

    def __init__(
        self,
        examples: dict[str, list[tuple[str, str]]],
        boxes: dict[str, tuple[float, ...]],
    ):
        """Take {split: [(path, class)]}, in the order in which they are read.

        And {path: box} as (top, left, bottom, right) in pixels of the file; records have
        a `box` if there are any.
        """
        self._examples, self._boxes = examples, boxes
        classes = sorted({label for part in examples.values() for _, label in part})
        self._numbers = {label: number for number, label in enumerate(classes)}
        splits = [
            tfds.core.SplitInfo(name=name, shard_lengths=[len(part)], num_bytes=0)
            for name, part in examples.items()
        ]
        self.info = types.SimpleNamespace(
            splits=tfds.core.splits.SplitDict(splits),
            features={"label": tfds.features.ClassLabel(names=classes)},
        )

    def records(self, split: str, begin: int, end: int) -> tf.data.Dataset:
        """Return the records of a part of a split.

        They hold `path`, `label`, `image/filename` and, in a folder with boxes, `box`,
        `NO_BOX` where it is not known.
        """
        part = self._examples[split][begin:end]
        paths = [path for path, _ in part]
        labels = [self._numbers[label] for _, label in part]
        records = {
            "path": tf.constant(paths, tf.string),
            "label": tf.constant(labels, tf.int64),
            "image/filename": tf.constant(paths, tf.string),
        }
        if self._boxes:
            boxes = [self._boxes.get(path, NO_BOX) for path in paths]
            records["box"] = tf.constant(boxes, tf.float32)
        return tf.data.Dataset.from_tensor_slices(records)

    def counts(self, parts: list[tuple[str, int, int]]) -> dict[str, int]:
        """Count the images of each class in parts of splits, in the classes' order."""
        found = collections.Counter(
            label
            for split, begin, end in parts
            for _, label in self._examples[split][begin:end]
        )
        return {label: found[label] for label in self._numbers}


def open_folder(root: str) -> Folder:
    """List a folder; say what in it is not read.

    Raises:
      ValueError: if it holds no images, `train` has none of some class, or `boxes.json`
        holds something else than boxes.
    """
    root = os.path.expanduser(root)
    try:
        splits = _folders(root)
    except tf.errors.OpError as error:
        raise ValueError(f"`name` is 'folder:{root}': {error.message}") from error
    examples, unread = {}, _Unread()
    for split in splits:
        found = _examples(os.path.join(root, split), unread)
        if found:
            random.Random(split).shuffle(found)  # as TFDS orders a folder's images
            examples[split] = found
    unread.report(root)
    if not examples:
        raise ValueError(
            f"`name` is 'folder:{root}', which holds no SPLIT/CLASS/IMAGE with the "
            f"ending {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        )
    _check_classes(root, splits, examples)
    paths = {path for part in examples.values() for path, _ in part}
    return Folder(examples, _boxes(root, paths))


def find_splits(root: str) -> dict[str, str]:
    """Say by the names of a folder's splits what each of them is for.

    Returns:
      {`train_split`, `calibration_split`, `test_split`: split}. Images to test on are in
      `test`, or else in `val` or `validation`; images to calibrate on in `calibration`,
      or in `val` where that is not the test. What is missing is cut off from `train`.

    Raises:
      ValueError: for a folder without images, or without `train`.
    """
    known = open_folder(root).info.splits
    if "train" not in known:
        raise ValueError(
            f"`name` is 'folder:{root}', which has the splits {', '.join(known)} and no "
            "'train'; give `config.train_split` and the others"
        )
    validation = [name for name in VALIDATION if name in known]
    test = [name for name in ("test", *validation) if name in known][:1]
    calibration = [name for name in ("calibration", *validation) if name in known]
    calibration = [name for name in calibration if name not in test][:1]
    first = 0 if calibration else CALIBRATION
    last = first + (0 if test else TEST)
    found = {
        "train_split": f"train[{last}%:]" if last else "train",
        "calibration_split": calibration[0] if calibration else f"train[:{first}%]",
        "test_split": test[0] if test else f"train[{first}%:{last}%]",
    }
    logging.info("folder:%s: %s", root, found)
    return found


class _Unread:
    """Files of class folders that are no images of ours."""

    def __init__(self):
        self._counts, self._first = collections.Counter(), {}

    def add(self, kind: str, path: str) -> None:
        self._counts[kind] += 1
        self._first.setdefault(kind, path)

    def report(self, root: str) -> None:
        for kind, count in self._counts.items():
            logging.warning(
                "folder:%s: %d %s, such as %s; images are read from SPLIT/CLASS/, with "
                "the endings %s",
                *(root, count, kind, text.printable(self._first[kind])),
                ", ".join(FORMATS),
            )


def _check_classes(root, splits, examples) -> None:
    """Refuse classes that cannot be learned."""
    if "train" not in splits:
        return
    named = {
        label: split
        for split in splits
        for label in _folders(os.path.join(root, split))
    }
    learned = {label for _, label in examples.get("train", ())}
    missing = sorted(set(named) - learned)
    if missing:
        raise ValueError(
            f"`name` is 'folder:{root}', whose class {text.printable(missing[0])!r} has "
            f"a folder in {named[missing[0]]!r} but no image in 'train'; "
            f"{len(missing)} of {len(named)} classes are so"
        )


def _boxes(root: str, paths: set[str]) -> dict[str, tuple[float, ...]]:
    """Return {path: (top, left, bottom, right)} of a folder's `boxes.json`, if any."""
    file = os.path.join(root, BOXES)
    if not tf.io.gfile.exists(file):
        return {}
    try:
        with tf.io.gfile.GFile(file) as opened:
            found = json.loads(opened.read())
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"{text.printable(file)} cannot be read: {error}") from None
    if not hasattr(found, "items"):
        raise ValueError(f"{text.printable(file)} holds no object {{path: box}}")
    boxes = {}
    for name, box in found.items():
        if not _is_box(box):
            raise ValueError(
                f"{text.printable(file)} has {box!r} for {text.printable(name)}; allowed "
                "is [xmin, ymin, xmax, ymax] in pixels, xmin < xmax and ymin < ymax"
            )
        left, top, right, bottom = box
        boxes[os.path.join(root, name)] = (top, left, bottom, right)
    known = {path: box for path, box in boxes.items() if path in paths}
    logging.log_first_n(  # a folder is opened by every stage
        logging.INFO,
        "%s: boxes of %d of %d images, and %d of files that are not there",
        1,
        *(text.printable(file), len(known), len(paths), len(boxes) - len(known)),
    )
    return known


def _is_box(box) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    if not all(type(side) in (int, float) and math.isfinite(side) for side in box):
        return False
    return 0 <= box[0] < box[2] and 0 <= box[1] < box[3]


def _examples(directory: str, unread: _Unread) -> list[tuple[str, str]]:
    """Return (path, class) of a split's images, sorted."""
    found = []
    for label in _folders(directory):
        folder = os.path.join(directory, label)
        names = sorted(filter(_is_shown, tf.io.gfile.listdir(folder)))
        for name in (name.rstrip("/") for name in names):
            path = os.path.join(folder, name)
            if name.lower().endswith(FORMATS):
                found.append((path, label))
            elif tf.io.gfile.isdir(path):
                unread.add("folders inside classes are not read", path)
            else:
                unread.add("files are not read", path)
    return found


def _folders(directory: str) -> list[str]:
    names = (name.rstrip("/") for name in tf.io.gfile.listdir(directory))
    return sorted(
        name
        for name in names
        if _is_shown(name) and tf.io.gfile.isdir(os.path.join(directory, name))
    )


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name.rstrip("/") != "__MACOSX"
