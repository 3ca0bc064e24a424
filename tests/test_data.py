import io
import itertools
import shutil

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from anchornet_jax.data import decode, loading

AS_IS = {"augment": "none", "flip": False, "resize": 0}


@pytest.fixture
def source(data_dir):
    """Return the small embedded data set, as it is."""
    return loading.prepare("plates/small", data_dir=data_dir, **AS_IS)


def flat(batches, name):
    """Join the devices and the batches."""
    return np.concatenate([b[name].reshape(-1, *b[name].shape[2:]) for b in batches])


@pytest.mark.parametrize("batch_size", [4, 12, 32, 100])
def test_evaluation_counts_every_image_once(source, batch_size):
    batches = list(loading.evaluation(source, "test", batch_size=batch_size))
    devices = jax.local_device_count()
    for batch in batches:
        assert batch["image"].shape == (devices, batch_size // devices, 224, 224, 3)
    mask = flat(batches, "mask")
    decoders = {"image": tfds.decode.SkipDecoding()}
    truth = list(tfds.as_numpy(source.builder.as_dataset("test", decoders=decoders)))
    assert mask.sum() == len(truth) == 32
    np.testing.assert_array_equal(
        flat(batches, "label")[mask], [e["label"] for e in truth]
    )
    np.testing.assert_array_equal(
        flat(batches, "image")[mask],
        [np.asarray(Image.open(io.BytesIO(e["image"]))) for e in truth],
    )
    np.testing.assert_allclose(
        flat(batches, "box")[mask], [e["bbox"] * 224 for e in truth], rtol=1e-6
    )


@pytest.mark.parametrize("first_step", [1, 7, 8, 19])
def test_training_continues_where_it_stopped(source, first_step):
    whole = loading.training(source, "train", batch_size=8, seed=3)
    rest = loading.training(
        source, "train", batch_size=8, seed=3, first_step=first_step
    )
    for one, other in zip(
        itertools.islice(whole, first_step, first_step + 3), itertools.islice(rest, 3)
    ):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_an_epoch_is_every_image_once_in_a_new_order(source):
    stream = loading.training(source, "train", batch_size=8, seed=0)
    epochs = [list(itertools.islice(stream, 8)) for _ in range(2)]
    sums = [flat(e, "image").astype(int).sum((1, 2, 3)) for e in epochs]
    assert sorted(sums[0]) == sorted(sums[1]) and len(set(sums[0])) == 64
    assert sums[0].tolist() != sums[1].tolist()


def test_augmentation_is_random_and_repeatable(data_dir):
    source = loading.prepare(
        "plates/small", data_dir=data_dir, image_size=96, resize=128
    )
    first = [
        next(loading.training(source, "train", batch_size=8, seed=0)) for _ in "ab"
    ]
    other = next(loading.training(source, "train", batch_size=8, seed=1))
    np.testing.assert_array_equal(first[0]["image"], first[1]["image"])
    assert first[0]["image"].shape[2:] == (96, 96, 3)
    assert not (first[0]["image"] == other["image"]).all()
    evaluated = next(loading.evaluation(source, "test", batch_size=8))
    assert evaluated["image"].shape[2:] == (96, 96, 3)


def test_centre_moves_the_box_along():
    """A white square stays under its box through resize and crop."""
    image = np.zeros((200, 300, 3), np.uint8)
    image[80:120, 130:190] = 255
    box = np.array([80 / 200, 130 / 300, 120 / 200, 190 / 300], np.float32)
    pixels, (y0, x0, y1, x1) = decode.centre(tf.constant(image), 64, 100, box)
    rows, columns = np.nonzero(pixels.numpy()[..., 0] > 127)
    assert abs(rows.min() - y0) <= 1 and abs(rows.max() + 1 - y1) <= 1
    assert abs(columns.min() - x0) <= 1 and abs(columns.max() + 1 - x1) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "plate"}, "`name` is 'plate', which TFDS does not know"),
        ({"name": "plates/tiny"}, "`name` is 'plates/tiny'"),
        ({"augment": "mixup"}, "`augment` is 'mixup'; choose one of"),
        ({"bad_images": "drop"}, "`bad_images` is 'drop'; choose one of"),
        (
            {"name": "plates/small", "data_dir": "/proc/x"},
            "`data_dir` is '/proc/x', wh",
        ),
        ({"name": "folder:/nowhere"}, "`name` is 'folder:/nowhere'"),
        ({"resize": 100}, "`resize` is 100; it must be 0 or at least .* 224"),
    ],
)
def test_bad_data(data_dir, arguments, message):
    with pytest.raises(ValueError, match=message):
        loading.prepare(**{"name": "plates/small", "data_dir": data_dir, **arguments})


def test_bad_split_and_batch(source):
    with pytest.raises(ValueError, match="`split` is 'validation'; plates has"):
        next(loading.evaluation(source, "validation", batch_size=8))
    with pytest.raises(ValueError, match="`batch_size` is 6; .* multiple of the 4"):
        next(loading.training(source, "train", batch_size=6, seed=0))
    with pytest.raises(ValueError, match="`batch_size` is 100; 'train' has 64 images"):
        next(loading.training(source, "train", batch_size=100, seed=0))


def test_images_smaller_than_asked_for(data_dir):
    source = loading.prepare(
        "plates/small", data_dir=data_dir, image_size=300, augment="none", resize=0
    )
    with pytest.raises(ValueError, match="smaller than `image_size`, 300"):
        next(loading.evaluation(source, "test", batch_size=8))


def test_labels_outside_the_classes(source):
    loading.check_labels(source, np.array([0, 9]))
    for label in (-1, 10):
        with pytest.raises(ValueError, match=f"`label` holds {label}; plates has the"):
            loading.check_labels(source, np.array([0, label, 9]))


def picture(mode="RGB", size=(120, 90), seed=0):
    """Draw smooth colours, of PIL's mode and size (width, height)."""
    shape = (9, 12, 4) if mode == "CMYK" else (9, 12, 3)
    colours = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    image = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
    if mode == "CMYK":
        return Image.frombytes(mode, size, image.tobytes())
    return image.convert(mode)


def encoded(image, file_format, **options):
    """Return an image file's bytes."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def rotated_by_exif():
    """Return a JPEG whose viewer should turn it by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    return encoded(picture(), "JPEG", exif=exif)


FILES = {
    "jpeg": encoded(picture(), "JPEG"),
    "grey jpeg": encoded(picture("L"), "JPEG"),
    "cmyk jpeg": encoded(picture("CMYK"), "JPEG"),
    "exif jpeg": rotated_by_exif(),
    "progressive jpeg": encoded(picture(), "JPEG", progressive=True),
    "png": encoded(picture(), "PNG"),
    "transparent png": encoded(picture("RGBA"), "PNG"),
    "grey png": encoded(picture("L"), "PNG"),
    "one pixel": encoded(picture(size=(1, 1)), "JPEG"),
}


@pytest.mark.parametrize("name", FILES)
def test_whole_images_are_those_of_pil(name):
    """An EXIF orientation is not applied, as in PIL's `open` and so torchvision."""
    wanted = Image.open(io.BytesIO(FILES[name])).convert("RGB")
    pixels = decode.whole(FILES[name]).numpy()
    # CMYK to RGB is rounded once here, twice there.
    np.testing.assert_allclose(
        pixels.astype(int), np.asarray(wanted, int), atol="cmyk" in name
    )


@pytest.mark.parametrize("name", FILES)
def test_a_random_part_is_a_part_of_the_whole(name, monkeypatch):
    pixels = decode.whole(FILES[name]).numpy().astype(int)
    for seed in range(4):
        part = decode.random_part(FILES[name], (seed, 7)).numpy().astype(int)
        again = decode.random_part(FILES[name], (seed, 7)).numpy()
        np.testing.assert_array_equal(part, again)
        h, w, _ = part.shape
        differences = [
            np.abs(pixels[y : y + h, x : x + w] - part).mean()
            for y in range(pixels.shape[0] - h + 1)
            for x in range(pixels.shape[1] - w + 1)
        ]
        # Colour at the edges of a part lacks its neighbours: a few columns differ.
        assert min(differences) < 0.5


def test_of_a_jpeg_only_the_part_is_decoded(monkeypatch):
    monkeypatch.setattr(decode, "whole", None)
    assert decode.random_part(FILES["jpeg"], (0, 0)).shape[-1] == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a user's folder: three classes, sizes and formats mixed."""
    root = tmp_path_factory.mktemp("folder")
    for split, images in (("train", 14), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "wasp")):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                image = picture(size=(100 + 7 * i, 90), seed=100 * label + i)
                file = root / split / name / f"{i}.{'png' if i % 5 == 0 else 'JPG'}"
                image.save(file, "PNG" if i % 5 == 0 else "JPEG")
            (root / split / name / "notes.txt").write_text("no image")
    return root


SMALL = {"image_size": 32, "resize": 40}


def test_folder_of_class_folders(folder):
    source = loading.prepare(f"folder:{folder}", **SMALL)
    assert source.classes == ["ant", "bee", "wasp"]
    assert source.examples("train") == 42
    assert source.examples("train[10:]+val") == 32 + 9
    batches = list(loading.evaluation(source, "val", batch_size=4))
    mask = flat(batches, "mask")
    assert sorted(flat(batches, "label")[mask]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    whole, first, rest = (
        flat(loading.evaluation(source, split, batch_size=4), "image")[
            : source.examples(split)
        ]
        for split in ("train[:10]+val", "train[:10]", "val")
    )
    np.testing.assert_array_equal(whole, np.concatenate([first, rest]))


def test_folder_continues_where_it_stopped(folder):
    source = loading.prepare(f"folder:{folder}", **SMALL)
    whole = loading.training(source, "train", batch_size=8, seed=3)
    rest = loading.training(source, "train", batch_size=8, seed=3, first_step=6)
    for one, other in zip(itertools.islice(whole, 6, 9), itertools.islice(rest, 3)):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def of_splits(root, *names):
    """Return the name of a data set with one image in each split."""
    for name in names:
        (root / name / "ant").mkdir(parents=True)
        (root / name / "ant" / "0.jpg").write_bytes(FILES["jpeg"])
    return f"folder:{root}"


@pytest.mark.parametrize(
    ("names", "train", "calibration", "test"),
    [
        (["train", "val"], "train[10%:]", "train[:10%]", "val"),
        (["train", "validation"], "train[10%:]", "train[:10%]", "validation"),
        (["train", "test"], "train[10%:]", "train[:10%]", "test"),
        (["train", "val", "test"], "train", "val", "test"),
        (["train", "calibration", "test"], "train", "calibration", "test"),
        (["train", "calibration", "val"], "train", "calibration", "val"),
        (
            ["train", "calibration", "validation", "test"],
            "train",
            "calibration",
            "test",
        ),
        (["train", "val", "validation"], "train", "validation", "val"),
        (["train", "calibration"], "train[20%:]", "calibration", "train[0%:20%]"),
        (["train", "more"], "train[30%:]", "train[:10%]", "train[10%:30%]"),
    ],
)
def test_splits_are_found(names, train, calibration, test, tmp_path):
    found = loading.find_splits(of_splits(tmp_path, *names))
    assert found == {
        "train_split": train,
        "calibration_split": calibration,
        "test_split": test,
    }


def test_splits_that_are_not_found(tmp_path):
    assert loading.find_splits("plates") == {}
    name = of_splits(tmp_path, "training", "val")
    with pytest.raises(ValueError, match="splits training, val and no 'train'"):
        loading.find_splits(name)


def test_folder_without_images(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "0.jpg").write_bytes(FILES["jpeg"])
    with pytest.raises(ValueError, match="holds no SPLIT/CLASS/IMAGE"):
        loading.prepare(f"folder:{tmp_path}")


@pytest.fixture
def damaged(folder, tmp_path):
    """Return a copy of the folder with five bad files; two of them in `val`."""
    bad = {
        "train/ant/1.JPG": FILES["jpeg"][:200],  # cut off before any pixel
        "train/bee/0.png": FILES["png"][:200],
        "train/wasp/new.jpg": b"<html>not found</html>",
        "val/ant/0.png": b"",
        "val/bee/1.JPG": FILES["jpeg"][: len(FILES["jpeg"]) // 2],
    }
    for path in folder.glob("*/*/*"):
        name = str(path.relative_to(folder))
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(path.read_bytes())
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_bad_images_are_an_error(damaged):
    source = loading.prepare(f"folder:{damaged}", **SMALL)
    for batches in (
        loading.evaluation(source, "val", batch_size=4),
        loading.training(source, "train", batch_size=8, seed=0),
    ):
        message = r"\.(JPG|jpg|png) cannot be decoded; `config.data.bad_images=skip`"
        with pytest.raises(ValueError, match=message):
            list(itertools.islice(batches, 6))


def test_files_that_have_gone(damaged, monkeypatch):
    """A file that cannot be opened is like one that cannot be decoded."""
    source = loading.prepare(f"folder:{damaged}", **SMALL)
    lenient = loading.prepare(f"folder:{damaged}", bad_images="skip", **SMALL)
    for path in (damaged / "val").glob("*/*"):
        if path.name != "2.JPG":
            path.unlink()
    with pytest.raises(ValueError, match=r"val/\w+/\d\.\w+ cannot be decoded"):
        list(loading.evaluation(source, "val", batch_size=4))
    messages = warnings(monkeypatch)
    batches = list(loading.evaluation(lenient, "val", batch_size=4))
    assert sorted(flat(batches, "label")[flat(batches, "mask")]) == [0, 1, 2]
    assert messages[-1].startswith("val: 6 of 9 images cannot be decoded")


def test_what_is_no_class_and_no_image(folder, tmp_path, monkeypatch):
    """Hidden folders are no classes; what is not read is counted and named."""
    shutil.copytree(folder, tmp_path / "mine")
    root, image = tmp_path / "mine", FILES["jpeg"]
    for hidden in (".git", ".ipynb_checkpoints", "__MACOSX"):
        for where in (root, root / "train"):
            (where / hidden / "ant").mkdir(parents=True)
            (where / hidden / "0.jpg").write_bytes(image)
            (where / hidden / "ant" / "0.jpg").write_bytes(image)
    (root / "train" / "ant" / "._0.JPG").write_bytes(b"of a Mac")
    (root / "train" / "ant" / "more").mkdir()
    (root / "train" / "bee" / "a.webp").write_bytes(image)
    messages = warnings(monkeypatch)
    source = loading.prepare(f"folder:{root}", **SMALL)
    assert source.classes == ["ant", "bee", "wasp"]
    assert source.examples("train") == 42
    # Six are the notes of the folder itself.
    assert sorted(text.split("; ")[0].partition(": ")[2] for text in messages) == [
        f"1 folders inside classes are not read, such as {root}/train/ant/more",
        f"7 files are not read, such as {root}/train/ant/notes.txt",
    ]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_that_cannot_be_learned(folder, tmp_path, split):
    shutil.copytree(folder, tmp_path / "mine")
    (tmp_path / "mine" / split / "moth").mkdir()
    if split == "val":
        (tmp_path / "mine" / "val" / "moth" / "0.jpg").write_bytes(FILES["jpeg"])
    message = f"class 'moth' has a folder in '{split}' but no image in 'train'; 1 of 4"
    with pytest.raises(ValueError, match=message):
        loading.prepare(f"folder:{tmp_path / 'mine'}")


def test_splits_without_images(source):
    for split in ("test[:0]", "test[5:5]", "test[:0]+train[:0]"):
        with pytest.raises(ValueError, match=r"`split` is .*, which has no images"):
            source.examples(split)


def test_no_image_can_be_decoded(tmp_path):
    (tmp_path / "val" / "ant").mkdir(parents=True)
    (tmp_path / "val" / "ant" / "0.jpg").write_bytes(b"")
    source = loading.prepare(f"folder:{tmp_path}", bad_images="skip", **SMALL)
    with pytest.raises(ValueError, match="none of the images of 'val'"):
        list(loading.evaluation(source, "val", batch_size=4))
    with pytest.raises(ValueError, match="`batch_size` is 4; 'val' has 1 images"):
        next(loading.training(source, "val", batch_size=4, seed=0))


def warnings(monkeypatch):
    """Return the list that warnings of the log will be in."""
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: messages.append(text % a))
    return messages


def test_bad_images_are_skipped_by_evaluation(damaged, monkeypatch):
    messages = warnings(monkeypatch)
    source = loading.prepare(f"folder:{damaged}", bad_images="skip", **SMALL)
    batches = list(loading.evaluation(source, "val", batch_size=4))
    assert len(batches) == 3  # 9 files in batches of 4, as if all were good
    mask = flat(batches, "mask")
    assert sorted(flat(batches, "label")[mask]) == [0, 0, 1, 1, 2, 2, 2]
    assert not flat(batches, "image")[~mask].any()
    assert any("ant/0.png, which cannot be decoded" in text for text in messages)
    assert messages[-1].startswith("val: 2 of 9 images cannot be decoded")


def test_bad_images_are_skipped_by_training(damaged, monkeypatch):
    """The order stays exact: a batch is a function of its seed and step alone."""
    messages = warnings(monkeypatch)
    source = loading.prepare(f"folder:{damaged}", bad_images="skip", **SMALL)
    batches = list(
        itertools.islice(loading.training(source, "train", batch_size=8, seed=0), 10)
    )
    assert set(batches[0]) == {"image", "label"}
    assert flat(batches, "image").any((1, 2, 3)).all()  # none is black
    assert sum("cannot be decoded" in text for text in messages) == 3
    rest = loading.training(source, "train", batch_size=8, seed=0, first_step=7)
    for one, other in zip(batches[7:], itertools.islice(rest, 3)):
        np.testing.assert_array_equal(one["image"], other["image"])


def test_a_bad_image_is_replaced_by_the_next_good_one():
    batch = {"good": np.array([0, 1, 0, 0, 1, 0], bool), "label": np.arange(6)}
    assert loading._replaced(batch)["label"].tolist() == [1, 1, 4, 4, 4, 1]
    with pytest.raises(ValueError, match="none of the 3 images of a batch"):
        loading._replaced({"good": np.zeros(3, bool), "label": np.arange(3)})


def train_images(source, count=8):
    return flat(
        [next(loading.training(source, "train", batch_size=count, seed=0))], "image"
    )


def test_disturbed_images(data_dir):
    """Each key does what it says, and without them nothing else changes."""

    def images(**keys):
        return train_images(
            loading.prepare("plates/small", data_dir=data_dir, **AS_IS, **keys)
        ).astype(int)

    plain = images()
    turned, lit, grainy = (
        images(turns=True),
        images(colour=0.3),
        images(noise=20.0),
    )
    kinds = {
        k
        for one, other in zip(plain, turned)
        for k in range(4)
        if (np.rot90(one, k) == other).all()
    }
    assert len(kinds) > 1  # each is a turn of its own, not all of them the same
    assert all(
        any((np.rot90(one, k) == other).all() for k in range(4))
        for one, other in zip(plain, turned)
    )
    np.testing.assert_array_equal(turned, images(turns=True))
    factors = lit.mean((1, 2, 3)) / plain.mean((1, 2, 3))
    assert 0.6 < factors.min() < 0.95 and 1.02 < factors.max() < 1.31
    noise = (grainy - plain).std((1, 2, 3))
    assert 0 <= noise.min() < 8 < noise.max() <= 20.5


def test_smallest_area():
    """No part is smaller; the papers' 8 % draws parts that are."""
    pixels = np.zeros((100, 100, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    areas = {
        least: [
            np.prod(decode.random_part(file.getvalue(), (seed, 1), least).shape[:2])
            for seed in range(20)
        ]
        for least in (0.08, 0.5)
    }
    assert min(areas[0.5]) > 4700 and min(areas[0.08]) < 4000


def test_inspect(folder, damaged):
    """Numbers, sizes and classes; what cannot be decoded is an error, or is left out."""
    source = loading.prepare(f"folder:{folder}", **SMALL)
    assert loading.inspect(source, "val+train[:0]") == {
        "images": 9,
        "smallest": [90, 100],
        "largest": [90, 114],
        "classes": {"ant": 3, "bee": 3, "wasp": 3},
    }
    with pytest.raises(ValueError, match="cannot be decoded; `config.data.bad_images"):
        loading.inspect(loading.prepare(f"folder:{damaged}", **SMALL), "val")
    lenient = loading.prepare(f"folder:{damaged}", bad_images="skip", **SMALL)
    assert loading.inspect(lenient, "val")["images"] == 9


def test_inspect_a_data_set_of_tfds(source):
    found = loading.inspect(source, "train[:20]")
    assert found == {"images": 20, "smallest": [224, 224], "largest": [224, 224]}
