"""Data: from any TFDS name to full batches of uint8 pixels, split over the devices.

Images stay uint8 until they are on the device (`preprocessing.normalise`). Training draws with
the standard augmentation of ImageNet (2022, Sec. 4.1) and decodes of a JPEG only what
is drawn. Evaluation counts every image once: the last batch is filled up with rows whose
`mask` is False, and every host makes the same number of batches. The order is a function
of seed and step alone, so a stream that starts at step n continues one that stopped
there.

Training needs squares of one size. Evaluation also gives images as they are, of any sizes
in one batch (`image_size=0`), to a method that keeps them in host memory and cuts views of
one shape out of them: so nothing is padded on the device, and nothing compiles per image.

    source = loading.prepare(name="plates", image_size=224, augment="none", resize=0)
    for batch in loading.evaluation(source, "test", batch_size=64): ...
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from anchornet_jax.data import datasets, decode, folders
from anchornet_jax.runtime import parallel, text

AUGMENTATIONS = ("none", "random_resized_crop")
BAD_IMAGES = ("error", "skip")
# Record keys that may hold the file name, in order of preference.
FILE = ("image/filename", "file_name", "tfds_id")
FIRST = 8  # images of a split that are looked at, for each device
AHEAD = 64  # batches that may have been begun when one failed
SHUFFLED = 16_384  # encoded images in the shuffle buffer, about 2 GB of ImageNet


class Source(NamedTuple):
    """A prepared data set, and how its images become squares of one size, or do not."""

    builder: tfds.core.DatasetBuilder | folders.Folder
    image_size: int
    augment: str
    flip: bool
    resize: int
    whole: bool
    bad_images: str
    smallest_area: float
    turns: bool
    colour: float
    noise: float

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes."""
        return list(self.builder.info.features["label"].names)

    def examples(self, split: str) -> int:
        """Count the images of a split."""
        return sum(
            end - begin for _, begin, end in datasets.resolve(self.builder, split)
        )


def prepare(
    name: str,
    *,
    data_dir: str = "",
    manual_dir: str = "",
    image_size: int = 224,
    augment: str = "random_resized_crop",
    flip: bool = True,
    resize: int = 256,
    whole: bool = False,
    bad_images: str = "error",
    smallest_area: float = 0.08,
    turns: bool = False,
    colour: float = 0.0,
    noise: float = 0.0,
) -> Source:
    """Open a data set; download or generate it if it is not there yet.

    Args:
      name: as TFDS knows it; `plates` is the project's own and draws itself. Or
        `folder:DIRECTORY` with images in DIRECTORY/SPLIT/CLASS, read where they are.
      data_dir: where TFDS keeps its data sets; its default where empty.
      manual_dir: archives that a user must download, such as ImageNet's; needed once.
        TFDS's default, `data_dir`/downloads/manual, where empty.
      image_size: side of the square images in pixels; 0, for evaluation alone: the images
        as they are, of any sizes.
      augment: of training images, one of `AUGMENTATIONS`; `none` takes what evaluation
        takes.
      flip: mirror half of the training images.
      resize: short side in pixels that evaluation resizes to before it cuts out the
        centre; 0 cuts only, for data that has the size already.
      whole: squeeze all of an image into the square in place of both, so that nothing is
        cut off; as the glance at a large image (methods/large.py) sees it.
      bad_images: one of `BAD_IMAGES`, what to do with a file that cannot be decoded.
        `skip` names and counts it in the log; training sees a neighbour in the batch
        twice, evaluation counts it neither as right nor as wrong.
      smallest_area: of the part of an image that `random_resized_crop` shows, as a share
        of it; the papers' 0.08 cuts small objects away.
      turns: turn training images by a random number of quarters, for things that lie
        any way round, such as those seen from above.
      colour: change brightness, contrast and saturation of training images by up to this
        share (torchvision's ColorJitter), for light that the training images lack.
      noise: add to training images normal noise of a deviation of up to so many of 255,
        which hides the grain by which a background could be learned by heart.

    Raises:
      ValueError: for an unknown data set, archives that are missing or incomplete, data
        without class labels, or an argument outside what is allowed.
    """
    for key, value, allowed in (
        ("augment", augment, AUGMENTATIONS),
        ("bad_images", bad_images, BAD_IMAGES),
    ):
        if value not in allowed:
            raise ValueError(f"`{key}` is {value!r}; choose one of {allowed}")
    if resize and resize < image_size:
        raise ValueError(
            f"`resize` is {resize}; it must be 0 or at least `image_size`, {image_size}"
        )
    with parallel.first_alone():
        builder = datasets.find(name, data_dir=data_dir, manual_dir=manual_dir)
    return Source(
        builder,
        image_size,
        augment,
        flip,
        resize,
        whole,
        bad_images,
        smallest_area,
        turns,
        colour,
        noise,
    )


def find_splits(name: str) -> dict[str, str]:
    """Return the splits of a data set that a config need not give: a folder's.

    Args:
      name: as of `prepare`.

    Returns:
      As `folders.find_splits`; of other data sets nothing.
    """
    if not name.startswith(datasets.FOLDER):
        return {}
    return folders.find_splits(name.removeprefix(datasets.FOLDER))


def training(
    source: Source, split: str, *, batch_size: int, seed: int, first_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield training batches without end, from the given step on.

    The batches do not depend on the number of hosts: each reads all encoded records,
    in the same order, and decodes its own rows of every batch. Reading costs little
    beside decoding, up to the bandwidth of the disk or network times the hosts.

    Args:
      source: from `prepare`.
      split: a TFDS split, slices like `train[10%:]` included.
      batch_size: images of all hosts together.
      seed: decides order and augmentation.
      first_step: number of batches to pass over, which costs no decoding.

    Yields:
      `image` uint8 [D, b, H, W, 3] and `label` int32 [D, b] of this host's devices.

    Raises:
      ValueError: for an unknown split, one smaller than a batch, a batch size that the
        devices do not divide, or images as they are.
    """
    check_trained_size(source)
    steps = steps_per_epoch(source, split, batch_size)
    local = parallel.local_batch(batch_size)
    epoch, step = divmod(first_step, steps)
    skipped = set()
    while True:
        seeds = np.random.SeedSequence((seed, epoch))
        order, pixels = (int(s) for s in seeds.generate_state(2))
        records = datasets.read(source.builder, split, order)
        records = records.shuffle(SHUFFLED, seed=order).enumerate()
        records = records.skip(step * batch_size)
        records = records.filter(functools.partial(_is_own, local))

        def batches(source, records=records, pixels=pixels):
            example = functools.partial(_train_example, source, pixels)
            examples = records.map(example, tf.data.AUTOTUNE)
            return examples.batch(local, drop_remainder=True)

        for batch in _checked(source, batches, steps - step, skipped):
            yield parallel.shard(_replaced(batch))
        epoch, step = epoch + 1, 0


def evaluation(
    source: Source, split: str, *, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield every image of a split once, in order, in full batches.

    Yields:
      `image` uint8 [D, b, H, W, 3], `label` int32 [D, b], `mask` bool [D, b], False
      where a row only fills the batch up or cannot be decoded, and, if the data set has
      one box per image, `box` [D, b, 4]: (top, left, bottom, right) in pixels of the
      image, all -1 where it is not known. Images as they are: `image` is an array
      [D, b] of arrays uint8 [H, W, 3] of any sizes.

    Raises:
      ValueError: for images as they are on several hosts.
    """
    local = parallel.local_batch(batch_size)
    hosts = jax.process_count()
    if hosts > 1 and not source.image_size:
        raise ValueError("`image_size` is 0; on several hosts allowed is 1 or more")
    steps = math.ceil(math.ceil(source.examples(split) / hosts) / local)
    shard = tfds.split_for_jax_process(split, drop_remainder=False)

    def read(source):
        example = functools.partial(_evaluation_example, source)
        records = datasets.read(source.builder, shard)
        examples = records.map(example, tf.data.AUTOTUNE)
        if source.image_size:
            return examples.batch(local)
        return examples.padded_batch(local)  # `_as_they_are` undoes it

    skipped, counted = set(), 0
    batches = _checked(source, read, steps, skipped)
    batch = {}
    for _ in range(steps):
        # A host with an image less than others ends with a batch that counts nothing.
        empty = {name: array[:0] for name, array in batch.items()}
        batch = next(batches, empty)
        filled = _filled(batch, local)
        counted += filled["mask"].sum()
        yield parallel.shard(_as_they_are(filled))
    if skipped and not counted:
        raise ValueError(f"none of the images of {split!r} can be decoded")
    if skipped:
        logging.warning(
            "%s: %d of %d images cannot be decoded; they count neither as right nor as "
            "wrong",
            split,
            len(skipped),
            source.examples(split),
        )


def first_images(source: Source, split: str, count: int, batch_size: int) -> np.ndarray:
    """Return the first images of a split that this host reads, as `evaluation` yields them.

    Returns:
      uint8 [B, H, W, 3]; images as they are: an array [B] of arrays.
    """
    found = []
    for batch in evaluation(source, split, batch_size=batch_size):
        mask = parallel.gather(batch["mask"])
        found.append(parallel.gather(batch["image"])[mask])
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count]


def inspect(source: Source, split: str) -> dict:
    """Read the first images of a split, as evaluation reads them; say what is there.

    Returns:
      `images`, their number; `smallest` and `largest`, the sides [height, width] in pixels
      of the files among the first images with the fewest and the most pixels; and of a
      folder `classes`, {class: number of images}.

    Raises:
      ValueError: for an unknown split, or images that cannot be read.
    """
    found = {"images": source.examples(split)}
    batch = next(evaluation(source, split, batch_size=FIRST * jax.device_count()))
    count = int(batch["mask"].sum())

    def sides(record):
        whole = source._replace(bad_images="skip")
        image, about = _decoded(whole, record, decode.whole)
        return tf.shape(image)[:2], about["good"]

    records = datasets.read(source.builder, split).take(count).map(sides)
    known = [size.tolist() for size, good in records.as_numpy_iterator() if good]
    if known:
        found["smallest"], found["largest"] = (
            end(known, key=math.prod) for end in (min, max)
        )
    if isinstance(source.builder, folders.Folder):
        parts = datasets.resolve(source.builder, split)
        found["classes"] = source.builder.counts(parts)
    return found


def steps_per_epoch(source: Source, split: str, batch_size: int) -> int:
    """Count the full batches of one pass over a split."""
    steps = source.examples(split) // batch_size if batch_size > 0 else 0
    if not steps:
        raise ValueError(
            f"`batch_size` is {batch_size}; {split!r} has {source.examples(split)} "
            "images, and one full batch is needed"
        )
    return steps


def _is_own(local, index, record):
    """Pick this host's rows of every global batch, each `local` in a row."""
    return index // local % jax.process_count() == jax.process_index()


def _train_example(source, seed, index, record):
    seeds = tf.random.split(tf.stack([tf.constant(seed, tf.int64), index]), 2)
    size = source.image_size
    if source.augment == "none":
        image, about = _decoded(source, record, decode.whole)
        image, _ = _square(source, image)
    else:
        part = functools.partial(
            decode.random_part, seed=seeds[0], smallest_area=source.smallest_area
        )
        image, about = _decoded(source, record, part)
        image = decode.scaled(image, (size, size))
    if source.flip:
        image = tf.image.stateless_random_flip_left_right(image, seeds[1])
    image = decode.disturbed(image, seeds[0], source.turns, source.colour, source.noise)
    return {"image": image, "label": tf.cast(record["label"], tf.int32), **about}


def _evaluation_example(source, record):
    image, about = _decoded(source, record, decode.whole)
    box = record.get("bbox")
    if "box" in record:  # a folder's, in pixels
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        box = record["box"] / tf.tile(sides, [2])
    if source.image_size:
        image, box = _square(source, image, box)
    else:
        sides = tf.shape(image)[:2]
        about["size"] = sides
        box = None if box is None else box * tf.cast(tf.tile(sides, [2]), box.dtype)
    example = {"image": image, "label": tf.cast(record["label"], tf.int32), **about}
    if "box" in record:
        box = tf.where(record["box"][0] < 0, tf.constant(folders.NO_BOX), box)
    return example if box is None else {**example, "box": box}


def _square(source, image, box=None):
    """Return the square of an image that the networks see, and the box in its pixels."""
    if source.whole:
        return decode.squeezed(image, source.image_size, box)
    return decode.centre(image, source.image_size, source.resize, box)


def _decoded(source, record, function):
    """Return the image and, where bad ones are skipped, `good` and `file`."""
    stored = record.get("image", record.get("path"))
    if "path" in record:  # a folder's; a file may have gone since it was listed
        whole, function = function, lambda path: whole(tf.io.read_file(path))
    if source.bad_images == "error":
        return function(stored), {}
    image, good = decode.or_black(function, stored, source.image_size or 1)
    file = next(record[name] for name in FILE if name in record)
    return image, {"good": good, "file": file}


def _checked(source, make, count, skipped):
    """Yield `count` NumPy batches; refuse what the networks could not notice.

    `make(source)` returns the batches as a TensorFlow data set. Files that cannot be
    decoded are added to `skipped`.
    """
    done = 0
    try:
        for batch in make(source).take(count).prefetch(2).as_numpy_iterator():
            check_labels(source, batch["label"])
            if "file" in batch:
                for file in set(batch.pop("file")[~batch["good"]]) - skipped:
                    skipped.add(file)
                    logging.warning(
                        "skipped %s, which cannot be decoded; %d so far",
                        *(text.printable(file), len(skipped)),
                    )
            yield batch
            done += 1
    except tf.errors.OpError as error:
        raise ValueError(
            f"{source.builder.name}: {_bad_file(source, make, done) or error.message}; "
            "`config.data.bad_images=skip` names images that cannot be decoded and "
            "passes over them"
        ) from error


def check_trained_size(source: Source) -> None:
    """Raise ValueError for images as they are, which no network can be trained on."""
    if not source.image_size:
        raise ValueError(
            "`image_size` is 0, images as they are; for training allowed is 1 or more, "
            "with `whole` so that nothing is cut off"
        )


def check_labels(source: Source, labels: np.ndarray) -> None:
    """Raise ValueError for a label that is no class: one-hot would ignore it."""
    low, high = labels.min(), labels.max()
    if not 0 <= low <= high < len(source.classes):
        raise ValueError(
            f"`label` holds {low if low < 0 else high}; {source.builder.name} has the "
            f"classes 0 to {len(source.classes) - 1}"
        )


def _bad_file(source, make, done: int) -> str:
    """Say which image failed soon after so many batches; TensorFlow does not."""
    if source.bad_images != "error":
        return ""
    lenient = source._replace(bad_images="skip")
    try:
        for batch in make(lenient).skip(done).take(AHEAD).as_numpy_iterator():
            for file in batch["file"][~batch["good"]]:
                return f"{text.printable(file)} cannot be decoded"
    except (tf.errors.OpError, StopIteration):
        pass  # it is something else
    return ""


def _replaced(batch):
    """Put the next good image of the batch in the place of each bad one."""
    good = batch.pop("good", np.ones(1, bool))
    if good.all():
        return batch
    if not good.any():
        raise ValueError(f"none of the {len(good)} images of a batch can be decoded")
    places = np.flatnonzero(good)
    rows = places[np.searchsorted(places, np.arange(len(good))) % len(places)]
    return {name: array[rows] for name, array in batch.items()}


def _filled(batch, size):
    """Fill a batch up; `mask` is True where an image is, and could be decoded."""
    rows = len(batch["label"])
    batch = {**batch, "mask": batch.get("good", np.ones(rows, bool))}
    batch.pop("good", None)
    return {
        name: np.concatenate([a, np.zeros((size - rows, *a.shape[1:]), a.dtype)])
        for name, a in batch.items()
    }


def _as_they_are(batch):
    """Return a batch whose images, if they were padded, are an array [b] of arrays."""
    batch = {**batch}
    sizes = batch.pop("size", None)
    if sizes is None:
        return batch
    images = np.empty(len(sizes), object)
    for row, (height, width) in enumerate(np.maximum(sizes, 1)):
        images[row] = batch["image"][row, :height, :width].copy()
    return batch | {"image": images}
