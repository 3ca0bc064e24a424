"""FOD-A: small things on runways, as a TFDS data set that is made from the original.

Munyer and others (2021), "FOD-A: A dataset for foreign object debris in airports", arXiv
2110.03072, MIT licence: 33,793 frames of 300 x 300 px of 117 video runs, and a box around
each object. Half of the boxes are narrower than a fifth of the frame.

The original's lists split by frame, and neighbouring frames are nearly the same picture.
Here whole runs are kept apart: of a class with four runs or more one is for testing, one
for calibration, the rest for training. A run is what stands in a row of the same class,
weather and light. Frames with several objects are left out, and of each run up to 40
frames are taken, spread over it.

    builder = tfds.builder("fod_a", data_dir=directory)
    settings = tfds.download.DownloadConfig(manual_dir="FOD-A")
    builder.download_and_prepare(download_config=settings)

`manual_dir` holds the original in the layout of Pascal VOC, folders JPEGImages,
Annotations and ImageSets at any depth, or the zip file of it.
"""

import csv
import dataclasses
import io
import itertools
import pathlib
import random
import zipfile
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

import tensorflow_datasets as tfds

CLASSES = (  # those with four runs
    *("Battery", "Bolt", "ClampPart", "Cutter", "Hammer", "Label", "LuggagePart"),
    *("LuggageTag", "MetalPart", "Nut", "PaintChip", "PlasticPart", "Pliers", "Rock"),
    *("SodaCan", "Washer", "Wire", "Wrench"),
)
RUNS = 4  # that a class needs
SIDE = 300  # px, of a frame whose annotation does not tell
IMAGES, ANNOTATIONS = "JPEGImages", "Annotations"
CONDITIONS = "ImageSets/Main/CategorizationData/FOD_categorization_annotations.csv"


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
      number: six digits, the name of its files.
      objects: their classes.
      box: (top, left, bottom, right) of the first, as shares of the sides.
    """

    number: str
    objects: tuple[str, ...]
    box: tuple[float, float, float, float]


def find(directory) -> pathlib.Path | zipfile.Path:
    """Find the original in a directory, or in a zip file in it.

    Raises:
      ValueError: if it is not there.
    """
    directory = pathlib.Path(directory)
    for folder in sorted(directory.rglob(ANNOTATIONS)):
        if (folder.parent / IMAGES).is_dir():
            return folder.parent
    for path in sorted(directory.rglob("*.zip")):
        archive = zipfile.ZipFile(path)
        for name in sorted(archive.namelist()):
            root, found, _ = name.partition(f"{ANNOTATIONS}/")
            if found and not root.startswith("__MACOSX"):
                return zipfile.Path(archive, root)
    raise ValueError(
        f"`manual_dir` is {str(directory)!r}, which holds neither folders {IMAGES} and "
        f"{ANNOTATIONS} nor a zip file of them; FOD-A comes from "
        "https://github.com/FOD-UNOmaha/FOD-data"
    )


def frames(root) -> Iterator[Frame]:
    """Yield the frames of the original in their order."""
    names = sorted(path.name for path in (root / ANNOTATIONS).iterdir())
    for name in names:
        if name.endswith(".xml") and not name.startswith("."):
            text = (root / ANNOTATIONS / name).read_text()
            yield _frame(name, ElementTree.fromstring(text))


def _frame(name: str, annotation) -> Frame:
    width, height = (
        float(annotation.findtext(f"size/{side}") or 0) or SIDE
        for side in ("width", "height")
    )
    objects = annotation.findall("object")
    left, top, right, bottom = (
        float(objects[0].findtext(f"bndbox/{side}")) if objects else 0
        for side in ("xmin", "ymin", "xmax", "ymax")
    )
    box = (top / height, left / width, bottom / height, right / width)
    return Frame(
        name.removesuffix(".xml")[-6:],
        tuple(one.findtext("name") for one in objects),
        tuple(min(max(side, 0.0), 1.0) for side in box),
    )


def conditions(root) -> dict[str, tuple[str, ...]]:
    """Return {frame: (weather, light)}."""
    _, *rows = csv.reader(io.StringIO((root / CONDITIONS).read_text()))
    return {row[0][:6]: tuple(row[1:3]) for row in rows if row}


def split(root, most: int) -> dict[str, list[tuple[Frame, str]]]:
    """Split the original by video run.

    Args:
      root: from `find`.
      most: frames of a run; one with less than half of them is left out.

    Returns:
      {split: [(frame, class)]}.

    Raises:
      ValueError: if some class has too few runs: parts of the original are missing.
    """
    seen = conditions(root)
    runs = {label: [] for label in CLASSES}
    kind = lambda frame: (sorted(set(frame.objects)), seen[frame.number])
    for (labels, _), run in itertools.groupby(frames(root), kind):
        single = [frame for frame in run if len(frame.objects) == 1]
        if len(labels) == 1 and labels[0] in runs and len(single) >= most // 2:
            runs[labels[0]].append(single)
    few = [label for label, found in runs.items() if len(found) < RUNS]
    if few:
        raise ValueError(
            f"{root} has fewer than {RUNS} runs of {', '.join(few)}: it is not the whole "
            "of FOD-A"
        )
    parts, rng = {"train": [], "calibration": [], "test": []}, random.Random(0)
    for label, found in runs.items():
        for number, run in enumerate(rng.sample(found, len(found))):
            part = {0: "test", 1: "calibration"}.get(number, "train")
            spread = run[:: max(1, len(run) // most)][:most]
            parts[part] += [(frame, label) for frame in spread]
    return parts


@dataclasses.dataclass
class FodAConfig(tfds.core.BuilderConfig):
    """How many frames of a run are taken."""

    most: int = 40


class FodA(tfds.core.GeneratorBasedBuilder):
    """Foreign object debris in airports, split by video run.

    Features: `image`, the JPEG file as it is; `label`; `bbox`, the object, which is for
    scoring and never for training. Splits: train, calibration and test.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        FodAConfig(name="runs", description="40 frames of each run."),
        FodAConfig(name="small", description="For tests.", most=2),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack FOD-A, from https://github.com/FOD-UNOmaha/FOD-data, or put its zip "
        "file here."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(None, None, 3), encoding_format="jpeg"
                    ),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                    "bbox": tfds.features.BBoxFeature(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        root = find(dl_manager.manual_dir)
        parts = split(root, self.builder_config.most)
        return {
            name: self._generate_examples(root, part) for name, part in parts.items()
        }

    def _generate_examples(self, root, part) -> Iterator[tuple[str, dict]]:
        for frame, label in part:
            pixels = (root / IMAGES / f"{frame.number}.jpg").read_bytes()
            box = tfds.features.BBox(*frame.box)
            example = {"image": io.BytesIO(pixels), "label": label, "bbox": box}
            yield frame.number, example
