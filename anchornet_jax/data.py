"""Data: from any TFDS name to full batches of uint8 pixels, split over the devices.

Images stay uint8 until they are on the device (`views.normalise`). Training draws with
the standard augmentation of ImageNet (2022, Sec. 4.1). Evaluation counts every image
once: the last batch is filled up with rows whose `mask` is False, and every host makes
the same number of batches. The order is a function of seed and step alone, so a stream
that starts at step n continues one that stopped there.

    source = data.prepare(name="plates", image_size=224, augment="none", resize=0)
    for batch in data.evaluation(source, "test", batch_size=64): ...
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import anchornet_jax.demo_data  # noqa: F401, registers `plates` with TFDS
from anchornet_jax import parallel

AUGMENTATIONS = ("none", "random_resized_crop")
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the random crop
SHUFFLED = 16_384  # encoded images in the shuffle buffer, about 2 GB of ImageNet


class Source(NamedTuple):
    """A prepared data set, and how its images become squares of one size."""

    builder: tfds.core.DatasetBuilder
    image_size: int
    augment: str
    flip: bool
    resize: int

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes."""
        return list(self.builder.info.features["label"].names)

    def examples(self, split: str) -> int:
        """Count the images of a split."""
        return _split(self.builder, split).num_examples


def prepare(
    name: str,
    *,
    data_dir: str = "",
    image_size: int = 224,
    augment: str = "random_resized_crop",
    flip: bool = True,
    resize: int = 256,
) -> Source:
    """Open a TFDS data set; download or generate it if it is not there yet.

    Args:
      name: as TFDS knows it; `plates` is the project's own and draws itself.
      data_dir: where TFDS keeps its data sets; its default where empty.
      image_size: side of the square images in pixels.
      augment: of training images, one of `AUGMENTATIONS`; `none` takes what evaluation
        takes.
      flip: mirror half of the training images.
      resize: short side in pixels that evaluation resizes to before it cuts out the
        centre; 0 cuts only, for data that has the size already.

    Raises:
      ValueError: for an unknown data set, one without class labels, or an argument
        outside what is allowed.
    """
    if augment not in AUGMENTATIONS:
        raise ValueError(f"`augment` is {augment!r}; choose one of {AUGMENTATIONS}")
    if resize and resize < image_size:
        raise ValueError(
            f"`resize` is {resize}; it must be 0 or at least `image_size`, {image_size}"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(f"`name` is {name!r}, which TFDS does not know") from error
    except ValueError as error:  # an unknown config of a known data set
        raise ValueError(f"`name` is {name!r}: {error}") from error
    if not {"image", "label"} <= set(builder.info.features):
        raise ValueError(
            f"`name` is {name!r}, whose features are {sorted(builder.info.features)}; "
            "`image` and `label` are needed"
        )
    with parallel.first_alone():
        builder.download_and_prepare()
    return Source(builder, image_size, augment, flip, resize)


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
      ValueError: for an unknown split, one smaller than a batch, or a batch size that
        the devices do not divide.
    """
    steps = steps_per_epoch(source, split, batch_size)
    local = parallel.local_batch(batch_size)
    epoch, step = divmod(first_step, steps)
    while True:
        seeds = np.random.SeedSequence((seed, epoch))
        order, pixels = (int(s) for s in seeds.generate_state(2))
        records = _records(source, split, order).shuffle(SHUFFLED, seed=order)
        records = records.enumerate().skip(step * batch_size)
        records = records.filter(functools.partial(_is_own, local))
        example = functools.partial(_train_example, source, pixels)
        records = records.map(example, tf.data.AUTOTUNE)
        batches = records.batch(local, drop_remainder=True).take(steps - step)
        for batch in _checked(source, batches):
            yield parallel.shard(batch)
        epoch, step = epoch + 1, 0


def evaluation(
    source: Source, split: str, *, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield every image of a split once, in order, in full batches.

    Yields:
      `image` uint8 [D, b, H, W, 3], `label` int32 [D, b], `mask` bool [D, b], False
      where a row only fills the batch up, and, if the data set has one box per image,
      `box` [D, b, 4]: (top, left, bottom, right) in pixels of the image.
    """
    _split(source.builder, split)
    local = parallel.local_batch(batch_size)
    hosts = jax.process_count()
    steps = math.ceil(math.ceil(source.examples(split) / hosts) / local)
    shard = tfds.split_for_jax_process(split, drop_remainder=False)
    records = _records(source, shard).map(
        lambda record: _evaluation_example(source, record), tf.data.AUTOTUNE
    )
    batches = _checked(source, records.batch(local))
    batch = {}
    for _ in range(steps):
        # A host with an image less than others ends with a batch that counts nothing.
        empty = {name: array[:0] for name, array in batch.items() if name != "mask"}
        batch = _filled(next(batches, empty), local)
        yield parallel.shard(batch)


def steps_per_epoch(source: Source, split: str, batch_size: int) -> int:
    """Count the full batches of one pass over a split."""
    steps = source.examples(split) // batch_size if batch_size > 0 else 0
    if not steps:
        raise ValueError(
            f"`batch_size` is {batch_size}; {split!r} has {source.examples(split)} "
            "images, and one full batch is needed"
        )
    return steps


def _split(builder, split):
    try:
        return builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"`split` is {split!r}; {builder.name} has {sorted(builder.info.splits)}, "
            "and slices like 'train[10%:]' are allowed"
        ) from error


def _records(source, split, shuffle_seed=None):
    """Read encoded examples, in an order that the seed decides."""
    options = tf.data.Options()
    options.deterministic = True
    config = tfds.ReadConfig(options=options, shuffle_seed=shuffle_seed)
    return source.builder.as_dataset(
        split=split,
        decoders={"image": tfds.decode.SkipDecoding()},
        shuffle_files=shuffle_seed is not None,
        read_config=config,
    )


def _is_own(local, index, record):
    """Pick this host's rows of every global batch, each `local` in a row."""
    return index // local % jax.process_count() == jax.process_index()


def _train_example(source, seed, index, record):
    seeds = tf.random.split(tf.stack([tf.constant(seed, tf.int64), index]), 2)
    size = source.image_size
    if source.augment == "none":
        image, _ = _centre(source, _decode(record["image"]))
    else:
        image = _decode(record["image"])
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros((1, 0, 4)),
            seeds[0],
            min_object_covered=0,
            aspect_ratio_range=RATIO,
            area_range=AREA,
            use_image_if_no_bounding_boxes=True,
        )
        image = _scaled(tf.slice(image, begin, extent), (size, size))
    if source.flip:
        image = tf.image.stateless_random_flip_left_right(image, seeds[1])
    return {"image": image, "label": tf.cast(record["label"], tf.int32)}


def _evaluation_example(source, record):
    image, box = _centre(source, _decode(record["image"]), record.get("bbox"))
    example = {"image": image, "label": tf.cast(record["label"], tf.int32)}
    return example if box is None else {**example, "box": box}


def _decode(encoded):
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def _centre(source, image, box=None):
    """Resize the short side, cut out the centre; the box [4] goes along, in pixels."""
    if source.resize:
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        sides = tf.round(sides * source.resize / tf.reduce_min(sides))
        image = _scaled(image, tf.cast(sides, tf.int32))
    size, sides = source.image_size, tf.shape(image)[:2]
    tf.debugging.assert_greater_equal(
        sides, size, f"an image is smaller than `image_size`, {size}; set `resize`"
    )
    corner = (sides - size) // 2
    image = image[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    image = tf.ensure_shape(image, (size, size, 3))
    if box is not None:
        box = box * tf.cast(tf.tile(sides, [2]), box.dtype)
        box = tf.clip_by_value(
            box - tf.cast(tf.tile(corner, [2]), box.dtype), 0.0, float(size)
        )
    return image, box


def _scaled(image, sides):
    image = tf.image.resize(image, sides, antialias=True)  # bilinear
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def _checked(source, batches):
    """Yield NumPy batches; refuse what the networks could not notice."""
    classes = len(source.classes)
    try:
        for batch in batches.prefetch(2).as_numpy_iterator():
            low, high = batch["label"].min(), batch["label"].max()
            if not 0 <= low <= high < classes:
                raise ValueError(
                    f"`label` holds {low if low < 0 else high}; {source.builder.name} "
                    f"has the classes 0 to {classes - 1}"
                )
            yield batch
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{source.builder.name}: {error.message}") from error


def _filled(batch, size):
    rows = len(batch["label"])
    batch = {**batch, "mask": np.ones(rows, bool)}
    return {
        name: np.concatenate([a, np.zeros((size - rows, *a.shape[1:]), a.dtype)])
        for name, a in batch.items()
    }
