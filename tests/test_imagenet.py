"""ImageNet from archives like those that a user downloads, through TFDS's own builder."""

import io
import json
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from anchornet_jax import models
from anchornet_jax.data import datasets, decode, loading
from anchornet_jax.inference.results import Evaluation
from anchornet_jax.programs import pipeline
from anchornet_jax.runtime import networks
from tests import test_readme, tiny

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
# TFDS converts these two while it reads the archive, by name; others it keeps.
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"
SYNSETS = ("n01440764", "n01739381", "n02105855", "n13133613")
EACH, VALIDATED = 8, 12  # images of a synset, and for validation


def listed(name):
    """Return the lines of a file that TFDS brings along."""
    path = tfds.core.tfds_path(f"datasets/imagenet2012/{name}")
    return path.read_text().split()


def image(number):
    """Draw an image whose size, colour mode and orientation depend on its number."""
    rng = np.random.default_rng(number)
    mode = ("RGB", "RGB", "L", "CMYK")[number % 4]
    colours = rng.integers(256, size=(8, 10, 3), dtype=np.uint8)
    size = tuple(int(side) for side in rng.integers(100, 240, 2))
    exif = Image.Exif()
    exif[0x0112] = 1 + number % 8  # orientation
    picture = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
    return picture.convert(mode), exif


def encoded(number, name=""):
    """Return the image's file, in the format that ImageNet has under that name."""
    picture, exif = image(number)
    file = io.BytesIO()
    if name == PNG:
        picture.convert("RGB").save(file, "PNG")
    elif name == CMYK:
        picture.convert("CMYK").save(file, "JPEG")
    else:
        picture.save(file, "JPEG", exif=exif)
    return file.getvalue()


def tar(files):
    """Return a tar file of {name: content}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Write both archives; return their directory."""
    directory = tmp_path_factory.mktemp("archives")
    classes = {}
    for part, synset in enumerate(SYNSETS):
        names = [f"{synset}_{i}.JPEG" for i in range(EACH)]
        names[0] = next((n for n in (CMYK, PNG) if n.startswith(synset)), names[0])
        files = {n: encoded(EACH * part + i, n) for i, n in enumerate(names)}
        classes[f"{synset}.tar"] = tar(files)
    (directory / TRAIN).write_bytes(tar(classes))
    (directory / VALIDATION).write_bytes(
        tar(
            {
                f"ILSVRC2012_val_{i + 1:08d}.JPEG": encoded(100 + i)
                for i in range(VALIDATED)
            }
        )
    )
    return directory


SIZE = {"image_size": 96, "resize": 110}


@pytest.fixture(scope="module")
def imagenet_dir(archives, tmp_path_factory):
    """Return a TFDS directory where the data set is made from the archives."""
    directory = str(tmp_path_factory.mktemp("imagenet"))
    loading.prepare("imagenet2012", data_dir=directory, manual_dir=str(archives))
    return directory


def test_prepared_data(imagenet_dir):
    """Once made, the archives are needed no more."""
    source = loading.prepare("imagenet2012", data_dir=imagenet_dir, **SIZE)
    assert source.examples("train") == EACH * len(SYNSETS)
    assert source.classes == listed("labels.txt") and len(source.classes) == 1000
    batch = next(loading.training(source, "train", batch_size=32, seed=0))
    assert (
        batch["image"].shape == (4, 8, 96, 96, 3) and batch["image"].dtype == np.uint8
    )
    counts = np.bincount(batch["label"].ravel(), minlength=1000)
    assert [counts[source.classes.index(s)] for s in SYNSETS] == [EACH] * len(SYNSETS)
    (batch,) = loading.evaluation(source, "validation", batch_size=16)
    labels = batch["label"].ravel()[batch["mask"].ravel()]
    # The label of the i-th validation image is the i-th line of TFDS's list.
    wanted = listed("validation_labels.txt")[:VALIDATED]
    assert sorted(source.classes[i] for i in labels) == sorted(wanted)


def test_images_are_what_pil_decodes(imagenet_dir):
    """Grey, CMYK and turned by EXIF alike; the orientation is not applied."""
    source = loading.prepare("imagenet2012", data_dir=imagenet_dir, **SIZE)
    records = datasets.read(source.builder, "validation").as_numpy_iterator()
    modes = set()
    for record in records:
        number = int(record["file_name"][-13:-5]) - 1
        stored = Image.open(io.BytesIO(encoded(100 + number)))
        modes.add(stored.mode)
        pixels = decode.whole(record["image"]).numpy().astype(int)
        np.testing.assert_allclose(
            pixels, np.asarray(stored.convert("RGB"), int), atol=stored.mode == "CMYK"
        )
    assert modes == {"RGB", "L", "CMYK"}


CHAIN = ("configs/anchornet.py:imagenet,", "configs/anchornet_2020.py:imagenet,")
NETWORKS = {
    "anchornet": tiny.TinyAnchorNet,
    "anchornet_multiscale": tiny.TinyMultiScaleAnchorNet,
    "resnet50": tiny.Tiny,
}


def small(config, imagenet_dir):
    """Let every stage of a pipeline take one step of eight images."""
    config.data.update(data_dir=imagenet_dir, image_size=160, resize=160)
    config.train_split, config.calibration_split = "train[16:]", "train[:16]"
    for stage in config.stages.values():
        stage.batch_size, stage.epochs, stage.accumulate = 8, 0.5, 1
        stage.budgets, stage.timing.images = 2, 0
    return config


@pytest.mark.slow
def test_commands_of_the_readme(imagenet_dir, tmp_path, monkeypatch):
    """The pipelines of both papers, with networks of a layer or two."""
    given = map(test_readme.parsed, test_readme.MAIN)
    chain = {
        flags["config"]: flags["workdir"]
        for flags in given
        if flags["config"].startswith(CHAIN) and set(flags) == {"config", "workdir"}
    }
    same = "configs/anchornet.py:imagenet,densenet201"  # but for the network
    assert chain.pop(same) == "runs/densenet201"
    for name, network in NETWORKS.items():
        monkeypatch.setitem(models.MODELS, name, (network, {}))
    monkeypatch.chdir(tmp_path)
    results = {}
    for command, workdir in chain.items():
        config = small(test_readme.load(command).unlock(), imagenet_dir)
        results[workdir] = pipeline.run(config, workdir)
    assert set(results) == {"runs/resnet50", "runs/resnet50_2020"}
    network = networks.load("runs/resnet50/patch/network")
    assert network.metadata["classes"] == listed("labels.txt")
    assert network.metadata["step"] == 1
    found = Evaluation.from_json(results["runs/resnet50"])
    assert len(found.anytime) == 5 and found.reference() and found.budgeted
    table = json.loads(
        pathlib.Path("runs/resnet50_2020/table_3_2020/summary.json").read_text()
    )
    assert set(table["branches"]) == {"63", "95", "111"}


def cut(path, size):
    """Keep the first bytes of a file; a negative size counts from the end."""
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / TRAIN).unlink(), f"{TRAIN} is missing"),
        (lambda d: (d / VALIDATION).unlink(), f"{VALIDATION} is missing"),
        (lambda d: cut(d / TRAIN, 100_000), f"{TRAIN} is .*incomplete"),
        (lambda d: cut(d / VALIDATION, 0), f"{VALIDATION} is .*incomplete"),
        (lambda d: (d / TRAIN).write_text("<html>"), f"{TRAIN} is .*incomplete"),
        (lambda d: (d / TRAIN).write_bytes(bytes(10240)), f"{TRAIN} is empty"),
    ],
)
def test_incomplete_archives(archives, tmp_path, damage, message):
    directory = tmp_path / "manual"
    shutil.copytree(archives, directory)
    damage(directory)
    with pytest.raises(ValueError, match=message) as caught:
        loading.prepare(
            "imagenet2012", data_dir=str(tmp_path), manual_dir=str(directory)
        )
    for part in ("`manual_dir` is", str(directory), TRAIN, VALIDATION, "image-net.org"):
        assert part in str(caught.value)
    assert not (tmp_path / "imagenet2012").exists()


def test_archive_cut_between_two_images(archives, tmp_path):
    """Nothing in it is broken; the end mark alone is not there."""
    directory = tmp_path / "manual"
    shutil.copytree(archives, directory)
    with tarfile.open(directory / VALIDATION) as archive:
        member = archive.getmembers()[5]
    cut(directory / VALIDATION, member.offset)
    with pytest.raises(ValueError, match=f"{VALIDATION} is cut off"):
        loading.prepare(
            "imagenet2012", data_dir=str(tmp_path), manual_dir=str(directory)
        )


def test_archives_are_first_looked_for_beside_the_data(tmp_path):
    with pytest.raises(ValueError, match="downloads/manual', where"):
        loading.prepare("imagenet2012", data_dir=str(tmp_path))
