"""Plates: a TFDS data set that draws itself, so that the method runs without a network.

Each image is a canvas of coarse coloured noise with three white plates; one carries
a dark digit, which is the class. A plate covers 2 to 18 % of the canvas: resized to a
glance, small digits blur, while a patch of original pixels shows them.
Importing this module registers the data set with TFDS:

    from anchornet_jax.data import plates
    builder = tfds.builder("plates", data_dir=directory)  # "plates/small" for tests
    builder.download_and_prepare()

In "plates/sizes" the digit fills its plate, so that the object, of which everything is
needed, is 36 to 108 px large: for the localiser of 2020 with its patches of 63, 95 and
111 px.

In "plates/large" the canvas has sides of 512 to 4096 px, and one plate among many, as
large as ever, carries the digit: searching is what grows with the image. In
"plates/large_1024" all sides are 1024 px, for networks that need one size.

Fonts come with matplotlib, and each belongs to one split only.
"""

import dataclasses
import functools
import io
import math
import pathlib
from collections.abc import Iterator

import matplotlib
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageFont, ImageOps

CANVAS = 224  # px
CANVAS_PER_PLATE = 2 * 224**2  # px² of a large image
PLATES = 3  # the first carries the digit
DIAMETER = (36, 108)  # px, of a plate; log-uniform
DIGIT_HEIGHT = 0.5  # of the plate's diameter
MAX_ANGLE = 20  # degrees either way
NOISE_CELLS = 16  # random colours along each side of the canvas
NOISE = (48, 208)  # range of those colours: only plates are white, only digits dark
JPEG_QUALITY = 95

# A sans font and its mono sibling have nearly the same outlines: one split has both.
# Left out: cmmi10 (old-style figures) and fonts without digits.
FONTS = {
    "train": (
        "DejaVuSans",
        "DejaVuSansMono",
        "DejaVuSans-Bold",
        "DejaVuSansMono-Bold",
        "DejaVuSerif-Italic",
        "DejaVuSerif-BoldItalic",
        "STIXGeneralItalic",
        "STIXGeneralBolIta",
        "cmb10",
        "cmr10",
        "cmss10",
        "cmti10",
        "cmtt10",
    ),
    "calibration": (
        "DejaVuSans-Oblique",
        "DejaVuSansMono-Oblique",
        "DejaVuSerif",
        "STIXGeneralBol",
    ),
    "test": (
        "DejaVuSans-BoldOblique",
        "DejaVuSansMono-BoldOblique",
        "DejaVuSerif-Bold",
        "STIXGeneral",
    ),
}


@functools.cache
def glyph(font: str, digit: int, height: int) -> Image.Image:
    """Return the mask of a digit, cut to its ink.

    Args:
        font: name of a TrueType file of matplotlib, without its suffix.
        digit: 0 to 9.
        height: of the ink, in px, to within one.

    Returns:
        A greyscale image, 255 where the ink is.
    """
    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    unit = 256  # px per em at which the height of the ink is measured
    _, top, _, bottom = ImageFont.truetype(path, unit).getbbox(str(digit))
    size = round(height * unit / (bottom - top))
    mask = ImageFont.truetype(path, size).getmask(str(digit), mode="L")
    return Image.frombytes("L", mask.size, bytes(mask))


def draw(
    rng: np.random.Generator,
    *,
    digit: int,
    fonts: tuple[str, ...],
    digit_height: float = DIGIT_HEIGHT,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        rng: source of everything random: colours, places, sizes, font and angle.
        digit: the class, 0 to 9.
        fonts: names to choose from, as in `FONTS`.
        digit_height: share of the plate's diameter.

    Returns:
        image: [224, 224, 3] uint8.
        box: [4] int, the digit's plate as (top, left, bottom, right) in px.
    """
    noise = rng.integers(*NOISE, size=(NOISE_CELLS, NOISE_CELLS, 3), dtype=np.uint8)
    canvas = Image.fromarray(noise).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    corners, diameters = _layout(rng)
    return _painted(rng, canvas, corners, diameters, digit, fonts, digit_height)


def draw_large(
    rng: np.random.Generator,
    *,
    digit: int,
    fonts: tuple[str, ...],
    sides: tuple[int, int],
    digit_height: float = DIGIT_HEIGHT,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one large image: as `draw`, with a plate for every `CANVAS_PER_PLATE` px².

    Args:
        rng: as of `draw`; also of the canvas' sides, each log-uniform.
        digit: as of `draw`, as is `fonts`.
        fonts: names to choose from.
        sides: shortest and longest side of the canvas, px.
        digit_height: share of the plate's diameter.

    Returns:
        image: [H, W, 3] uint8.
        box: as of `draw`.
    """
    low, high = np.log(sides)
    height, width = np.exp(rng.uniform(low, high, 2)).round().astype(int).tolist()
    cell = CANVAS / NOISE_CELLS  # colours are as coarse as in small images
    cells = [round(side / cell) for side in (height, width)]
    noise = rng.integers(*NOISE, size=(*cells, 3), dtype=np.uint8)
    canvas = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    count = height * width // CANVAS_PER_PLATE
    low, high = np.log(DIAMETER)
    diameters = np.exp(rng.uniform(low, high, count)).round().astype(int)
    corners = _scattered(rng, diameters, height, width)
    return _painted(
        *(rng, canvas, corners, diameters.tolist(), digit, fonts, digit_height)
    )


def _scattered(rng, diameters, height, width) -> list:
    """Return corners (top, left) of plates that do not overlap, one after the other."""
    centres = np.zeros((0, 2))
    for number, diameter in enumerate(diameters):
        gaps = (diameters[:number] + diameter) / 2
        while True:
            corner = rng.integers((height - diameter + 1, width - diameter + 1))
            centre = corner + diameter / 2
            if (np.linalg.norm(centres - centre[None], axis=1) > gaps).all():
                break
        centres = np.concatenate([centres, centre[None]])
    return (centres - diameters[:, None] / 2).astype(int).tolist()


def _painted(rng, canvas, corners, diameters, digit, fonts, digit_height):
    """Paint plates, the first with the digit; return pixels and its box."""
    for (top, left), diameter in zip(corners, diameters):
        canvas.paste((255, 255, 255), (left, top), _disc(diameter))

    (top, left), diameter = corners[0], diameters[0]
    height = round(digit_height * diameter)
    mask = glyph(fonts[rng.integers(len(fonts))], digit, height)
    # Without an empty border, edges on the mask's rim would come out jagged.
    mask = ImageOps.expand(mask, border=2).rotate(
        rng.uniform(-MAX_ANGLE, MAX_ANGLE), Image.Resampling.BICUBIC, expand=True
    )
    ink = tuple(int(c) for c in rng.integers(80, size=3))
    place = (left + (diameter - mask.width) // 2, top + (diameter - mask.height) // 2)
    canvas.paste(ink, place, mask)
    return np.asarray(canvas), np.array([top, left, top + diameter, left + diameter])


def _layout(rng: np.random.Generator) -> tuple[list, list]:
    """Return corners (top, left) and diameters of plates that do not overlap."""
    low, high = (math.log(d) for d in DIAMETER)
    diameters = np.exp(rng.uniform(low, high, PLATES)).round().astype(int)
    first, second = np.triu_indices(PLATES, 1)
    gaps = (diameters[first] + diameters[second]) / 2
    # The diameters stay and only the places are drawn again: redrawing both would
    # make large plates rare.
    while True:
        corners = rng.integers(CANVAS - diameters[:, None] + 1, size=(64, PLATES, 2))
        centres = corners + diameters[:, None] / 2
        between = np.linalg.norm(centres[:, first] - centres[:, second], axis=-1)
        fits = (between > gaps).all(axis=-1)  # [64]
        if fits.any():
            return corners[fits.argmax()].tolist(), diameters.tolist()


@functools.cache
def _disc(diameter: int) -> Image.Image:
    """Return the mask of a disc, its edge smoothed over one pixel."""
    steps = np.arange(diameter) + 0.5 - diameter / 2
    radius = np.hypot(steps[:, None], steps)
    edge = np.clip(diameter / 2 - radius + 0.5, 0, 1)
    return Image.fromarray((255 * edge).astype(np.uint8))


@dataclasses.dataclass
class PlatesConfig(tfds.core.BuilderConfig):
    """How many images each split has, the digits' size, the seed that decides all."""

    train: int = 8000
    calibration: int = 2000
    test: int = 2000
    digit_height: float = DIGIT_HEIGHT  # of the plate's diameter
    sides: tuple[int, int] | None = None  # px, of a large canvas
    seed: int = 0

    def draw(self, rng, **arguments):
        """Draw one image, as `draw` or `draw_large`."""
        arguments["digit_height"] = self.digit_height
        if self.sides is None:
            return draw(rng, **arguments)
        return draw_large(rng, sides=self.sides, **arguments)


class Plates(tfds.core.GeneratorBasedBuilder):
    """A digit on one of three plates, small on a large canvas.

    Features: `image`, a JPEG file; `label`; `bbox`, the plate with the digit, which is
    for scoring and never for training. Splits: train, calibration and test.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        PlatesConfig(name="full", description="The demo's data."),
        PlatesConfig(
            name="small", description="For tests.", train=64, calibration=32, test=32
        ),
        PlatesConfig(
            name="sizes",
            description="Digits that fill plates.",
            calibration=1000,
            test=1000,
            digit_height=0.75,
        ),
        PlatesConfig(
            name="large",
            description="One digit among many plates, sides of 512 to 4096 px.",
            train=2000,
            calibration=500,
            test=500,
            sides=(512, 4096),
        ),
        PlatesConfig(
            name="large_1024",
            description="The same with sides of 1024 px, for networks that need one size.",
            train=2000,
            calibration=500,
            test=500,
            sides=(1024, 1024),
        ),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(
                            (CANVAS, CANVAS, 3)
                            if self.builder_config.sides is None
                            else (None, None, 3)
                        ),
                        encoding_format="jpeg",
                    ),
                    "label": tfds.features.ClassLabel(names=list("0123456789")),
                    "bbox": tfds.features.BBoxFeature(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in FONTS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        part = list(FONTS).index(split)
        for index in range(getattr(self.builder_config, split)):
            # An image depends on its own three numbers only, on no other image.
            rng = np.random.default_rng((self.builder_config.seed, part, index))
            digit = index % 10
            fonts = FONTS[split]
            image, box = self.builder_config.draw(rng, digit=digit, fonts=fonts)
            height, width = image.shape[:2]
            yield (
                index,
                {
                    "image": _encode(image),
                    "label": digit,
                    "bbox": tfds.features.BBox(
                        *(box / (height, width, height, width)).tolist()
                    ),
                },
            )


def _encode(image: np.ndarray) -> io.BytesIO:
    """Return the image as a JPEG file, which TFDS stores as it is."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
    file.seek(0)
    return file
