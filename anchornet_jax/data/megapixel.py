"""Megapixel MNIST: five small digits on a large black canvas; three of them are the class.

By the two public recipes. That of attention sampling (Katharopoulos and Fleuret,
*Processing Megapixel Images with Deep Attention-Sampling Models*, 2019;
scripts/make_mnist.py of idiap/attention-sampling): canvases of 1500 x 1500 pixels, 5,000 to
train on and 1,000 to test, 50 scribbles painted over the digits; in its easy variant 500 x
500 pixels and no scribbles. And that of iterative patch selection (Bergner and others,
*Iterative Patch Selection for High-Resolution Image Recognition*, 2023;
data/megapixel_mnist/make_mnist.py of benbergner/ips): the same draws, the scribbles under
the digits, and three more tasks.

The 28 x 28 digits are those of TFDS's `mnist` where it has been prepared in the same
`data_dir`; elsewhere they are drawn with matplotlib's fonts, and results are not those of
MNIST. `builder.info.metadata["digits"]` says which, and so does the log.

    tfds.builder("mnist", data_dir=directory).download_and_prepare()  # if wanted, first
    builder = tfds.builder("megapixel_mnist/ips", data_dir=directory)
    builder.download_and_prepare()  # "megapixel_mnist/small" for tests

Deviates: an image depends on seed, split and its own number alone, on no other image, so
the draws are of the same distributions, not the same draws; and there are 1,000 images for
calibration, with digits of the training part that no training image has.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image, ImageOps

from anchornet_jax.data import plates

CLASSES = 10
SIDE = 28  # px, of a digit and of a scribble
OF_CLASS, OTHERS = 3, 2  # digits of an image
SPLITS = ("train", "calibration", "test")
MNIST, DRAWN = "mnist", "drawn"
DRAWN_COUNTS = {"train": 60_000, "calibration": 10_000, "test": 10_000}
INK = 20  # px, the longer side of a drawn digit, as in MNIST
LONGEST = 27.49  # px, of a line along either side: rounds to the last cell
STEPS = 56  # points of a line
FLIP = 0.33
FAINTEST = 0.8  # brightness of a scribble's pixels; up to 1


class Digits(NamedTuple):
    """Digits to choose from: their classes [n], and each one's pixels, uint8 [28, 28]."""

    labels: np.ndarray
    image: Callable[[int], np.ndarray]


def choose(rng: np.random.Generator, labels: np.ndarray) -> tuple[int, np.ndarray]:
    """Draw a class, and the digits of an image: three of the class, then two of others.

    Args:
      rng: source of both.
      labels: classes [n] of the digits to choose from.

    Returns:
      The class and the digits' places in `labels` [5]; each may be drawn twice.
    """
    target = int(rng.integers(CLASSES))
    own = labels == target
    return target, np.concatenate(
        [
            rng.choice(np.flatnonzero(own), OF_CLASS),
            rng.choice(np.flatnonzero(~own), OTHERS),
        ]
    )


def scatter(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw corners [5, 2] (row, column) of digits that do not overlap on a canvas."""
    corners = np.zeros((0, 2), int)
    while len(corners) < OF_CLASS + OTHERS:
        corner = np.round(rng.random(2) * (side - SIDE)).astype(int)
        if not (np.abs(corners - corner) < SIDE).all(1).any():
            corners = np.concatenate([corners, corner[None]])
    return corners


def scribbles(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw noise patterns, uint8 [count, 28, 28]: two lines each, of uneven brightness.

    The second line is another pattern's first. It is mirrored by two draws of
    probability .33, both from left to right in the public recipes, so twice is not at all.
    """
    slopes = np.tan(rng.random(count) * np.pi / 2.5)
    lines = np.zeros((count, SIDE, SIDE), bool)
    for line, slope in zip(lines, slopes):
        rows = np.linspace(0, min(LONGEST, LONGEST / slope), STEPS)
        line[rows.round().astype(int), (slope * rows).round().astype(int)] = True
    seconds = rng.permutation(lines)
    once, twice = rng.random((2, count)) < FLIP
    mirrored = once ^ twice
    seconds[mirrored] = seconds[mirrored][..., ::-1]
    bright = FAINTEST + (1 - FAINTEST) * rng.random(lines.shape)
    return (255 * (lines | seconds) * bright).astype(np.uint8)


def paint(canvas: np.ndarray, corners: np.ndarray, patterns) -> None:
    """Put patterns [28, 28] on a canvas [H, W], each over whatever is there."""
    for (top, left), pattern in zip(corners, patterns):
        canvas[top : top + SIDE, left : left + SIDE] = pattern


def draw(
    rng: np.random.Generator,
    digits: Digits,
    noise: np.ndarray,
    *,
    side: int,
    noise_on_top: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
      rng: source of class, digits, places and scribbles, in this order.
      digits: to choose from.
      noise: patterns of `scribbles`; of so many an image has as many places.
      side: of the canvas, px.
      noise_on_top: whether scribbles are painted over the digits, or under them.

    Returns:
      image: uint8 [side, side].
      classes: [5] of the digits, the first three the image's.
      corners: [5, 2] of the digits, (row, column).
    """
    _, chosen = choose(rng, digits.labels)
    corners = scatter(rng, side)
    places = (rng.random((len(noise), 2)) * (side - 2 * SIDE) + SIDE).astype(int)
    patterns = noise[rng.integers(len(noise), size=len(noise))] if len(noise) else ()
    layers = [(corners, map(digits.image, chosen.tolist())), (places, patterns)]
    canvas = np.zeros((side, side), np.uint8)
    for layer in layers if noise_on_top else reversed(layers):
        paint(canvas, *layer)
    return canvas, digits.labels[chosen], corners


def tasks(classes: np.ndarray, corners: np.ndarray) -> dict:
    """Return the labels of an image for the four tasks of iterative patch selection.

    Args:
      classes: [5] of the digits; the first is the majority's.
      corners: [5, 2] of the digits.

    Returns:
      `label`, the class of three digits; `max`, the largest digit; `top`, the uppermost;
      `multi` [10], for each class whether it is there.
    """
    return {
        "label": int(classes[0]),
        "max": int(classes.max()),
        "top": int(classes[corners[:, 0].argmin()]),
        "multi": np.isin(np.arange(CLASSES), classes),
    }


def drawn(split: str) -> Digits:
    """Return digits that matplotlib's fonts draw, of each split by fonts of its own."""
    fonts, part = plates.FONTS[split], SPLITS.index(split)

    @functools.lru_cache(4096)
    def image(number):
        rng = np.random.default_rng((part, number))
        mask = plates.glyph(fonts[rng.integers(len(fonts))], number % CLASSES, 2 * INK)
        turned = ImageOps.expand(mask, border=2).rotate(
            rng.uniform(-plates.MAX_ANGLE, plates.MAX_ANGLE),
            Image.Resampling.BICUBIC,
            expand=True,
        )
        return _centred(turned.crop(turned.getbbox()))

    return Digits(np.arange(DRAWN_COUNTS[split]) % CLASSES, image)


def _centred(ink: Image.Image) -> np.ndarray:
    """Bring ink to MNIST's size and place: its centre of mass in the middle."""
    scale = INK / max(ink.size)
    sides = [max(1, round(scale * side)) for side in ink.size]
    pixels = np.asarray(ink.resize(sides, Image.Resampling.BICUBIC))
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    corner = []
    for axis, length in enumerate(pixels.shape):
        mass = pixels.sum(1 - axis, dtype=float)
        middle = (mass @ (np.arange(length) + 0.5)) / mass.sum()
        corner.append(min(max(0, round(SIDE / 2 - middle)), SIDE - length))
    top, left = corner
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


def mnist(builder, split: str) -> Digits:
    """Return the digits of a split of TFDS's `mnist`, which has been prepared."""
    found = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    images = found["image"][..., 0]
    return Digits(found["label"], images.__getitem__)


@dataclasses.dataclass
class MegapixelConfig(tfds.core.BuilderConfig):
    """What the recipes leave open, how many images each split has, and the seed."""

    train: int = 5000
    calibration: int = 1000
    test: int = 1000
    side: int = 1500  # px
    noise: int = 50  # patterns of a split, and places of an image
    noise_on_top: bool = True
    seed: int = 0

    def rng(self, split: str, number: int = -1) -> np.random.Generator:
        """Return what an image is drawn with, without a number what a split has."""
        return np.random.default_rng((self.seed, SPLITS.index(split), 1 + number))

    def left_over(self, labels: np.ndarray) -> np.ndarray:
        """Return the places of the training digits [n] that no training image has."""
        left = np.ones(len(labels), bool)
        for number in range(self.train):
            left[choose(self.rng("train", number), labels)[1]] = False
        return np.flatnonzero(left)


class MegapixelMnist(tfds.core.GeneratorBasedBuilder):
    """Five digits on a large black canvas; the class is that of three of them.

    Features: `image`, a grey PNG file; `label`; `max`, `top` and `multi`, the labels of
    three other tasks; `objects`, class and box of each digit, for scoring and never for
    training. Splits: train, calibration and test.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        MegapixelConfig(name="ats", description="Attention sampling's."),
        MegapixelConfig(
            name="ats_easy",
            description="Attention sampling's easy variant.",
            side=500,
            noise=0,
        ),
        MegapixelConfig(
            name="ips",
            description="Iterative patch selection's.",
            noise_on_top=False,
        ),
        MegapixelConfig(
            name="small",
            description="For tests.",
            train=16,
            calibration=8,
            test=8,
            side=256,
            noise=5,
        ),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.side
        digit = tfds.features.ClassLabel(names=list("0123456789"))
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(side, side, 1), encoding_format="png"
                    ),
                    "label": digit,
                    "max": digit,
                    "top": digit,
                    "multi": tfds.features.Tensor(shape=(CLASSES,), dtype=np.bool_),
                    "objects": tfds.features.Sequence(
                        {"bbox": tfds.features.BBoxFeature(), "label": digit}
                    ),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        root = self.data_path.parents[2]
        source = tfds.builder("mnist", data_dir=root)
        found = MNIST if source.is_prepared() else DRAWN
        self.info.metadata["digits"] = found
        logging.info("%s: digits of %s", self.name, found)
        digits = {split: drawn(split) for split in SPLITS}
        if found == MNIST:
            digits = self._parted(mnist(source, "train"), mnist(source, "test"))
        return {
            split: self._generate_examples(split, digits[split]) for split in SPLITS
        }

    def _parted(self, train: Digits, test: Digits) -> dict[str, Digits]:
        """Return the digits of each split, of MNIST's two."""
        left = self.builder_config.left_over(train.labels)
        rest = Digits(train.labels[left], lambda place: train.image(left[place]))
        return {"train": train, "calibration": rest, "test": test}

    def _generate_examples(self, split: str, digits: Digits) -> Iterator:
        config = self.builder_config
        noise = scribbles(config.rng(split), config.noise)
        for number in range(getattr(config, split)):
            image, classes, corners = draw(
                *(config.rng(split, number), digits, noise),
                side=config.side,
                noise_on_top=config.noise_on_top,
            )
            boxes = np.concatenate([corners, corners + SIDE], 1) / config.side
            objects = [
                {"bbox": tfds.features.BBox(*box), "label": int(one)}
                for box, one in zip(boxes.tolist(), classes)
            ]
            about = tasks(classes, corners) | {"objects": objects}
            yield number, {"image": _encode(image)} | about


def _encode(image: np.ndarray) -> io.BytesIO:
    """Return the image as a PNG file, which TFDS stores as it is."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    file.seek(0)
    return file
