"""Data sets by name: TFDS's, or a user's folder, as encoded records in a fixed order.

TFDS makes a data set from whatever archives are there: with one of two it leaves a split
out, and it reads a cut-off one to the point where it ends. So they are checked first, by
their tables of contents, which takes seconds.

    builder = datasets.find("folder:/data/flowers")
    records = datasets.read(builder, "train[10%:]", seed=0)
"""

import functools
import os
import tarfile

import tensorflow as tf
import tensorflow_datasets as tfds

import anchornet_jax.data.fod_a
import anchornet_jax.data.megapixel
import anchornet_jax.data.plates  # noqa: F401, registers all three with TFDS
from anchornet_jax.data import folders

FOLDER = "folder:"  # and a directory: SPLIT/CLASS/*.jpg
ARCHIVES = {  # data set: (files, who gives them)
    "imagenet2012": (
        ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
        "https://image-net.org/download-images, after registration",
    ),
}
BLOCK = 512  # bytes; a tar file is made of blocks and ends with two of zeros


def find(
    name: str, *, data_dir: str = "", manual_dir: str = ""
) -> tfds.core.DatasetBuilder | folders.Folder:
    """Open a data set; download or generate it if it is not there yet.

    Args:
      name: see `loading.prepare`, as for the others.

    Raises:
      ValueError: for an unknown data set, archives that are missing or incomplete, or
        data without class labels.
    """
    if name.startswith(FOLDER):
        return folders.open_folder(name.removeprefix(FOLDER))
    return _find_in_tfds(name, data_dir, manual_dir)


def resolve(builder, split) -> list[tuple[str, int, int]]:
    """Return what a split takes: (name, first image, the one after the last).

    Args:
      builder: from `find`.
      split: `train`, `train[10%:]`, `train+test`; or TFDS's share of one host.

    Raises:
      ValueError: for an unknown split, it names the known ones; or one without images.
    """
    splits = builder.info.splits
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    except ValueError as error:
        raise ValueError(
            f"`split` is {split!r}; {builder.name} has {sorted(splits)}, and slices "
            "like 'train[10%:]' are allowed"
        ) from error
    found = [
        (
            p.splitname,
            p.from_ or 0,
            splits[p.splitname].num_examples if p.to is None else p.to,
        )
        for p in parts
    ]
    if isinstance(split, str) and all(begin >= end for _, begin, end in found):
        raise ValueError(f"`split` is {split!r}, which has no images")
    return found


def read(builder, split, seed: int | None = None) -> tf.data.Dataset:
    """Read records whose `image` is encoded, in an order that the seed decides.

    Files are read in another order for each seed; the records within are not shuffled.
    Without a seed the order is that of the split. The records of a folder, in a fixed
    order, hold the `path` of an image instead.
    """
    options = tf.data.Options()
    options.deterministic = True
    if isinstance(builder, folders.Folder):
        parts = [builder.records(*part) for part in resolve(builder, split)]
        joined = functools.reduce(tf.data.Dataset.concatenate, parts)
        return joined.with_options(options)
    return builder.as_dataset(
        split=split,
        shuffle_files=seed is not None,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(
            options=options,
            shuffle_seed=seed,
            add_tfds_id=True,
            try_autocache=False,  # a stream is read once
        ),
    )


def check_archives(name: str, directory: str) -> None:
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
        problem = _problem(tfds.core.Path(directory) / file)
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


def _find_in_tfds(name, data_dir, manual_dir):
    """Open a data set of TFDS, made if need be."""
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
    root = data_dir or tfds.core.constants.DATA_DIR
    if not builder.is_prepared():
        manual_dir = manual_dir or os.path.join(root, "downloads", "manual")
        check_archives(builder.name, manual_dir)
        settings = tfds.download.DownloadConfig(manual_dir=manual_dir)
        try:
            builder.download_and_prepare(download_config=settings)
        except AssertionError as error:  # so TFDS says that archives are missing
            raise ValueError(f"`manual_dir` is {manual_dir!r}: {error}") from error
        except (OSError, RuntimeError, tf.errors.OpError) as error:  # a full disk, say
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"`data_dir` is {root!r}, where {name} could not be made: {reason}"
            ) from error
    return builder
