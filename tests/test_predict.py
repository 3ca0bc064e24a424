"""Images of one's own: what is printed, written and drawn, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from anchornet_jax.data import photos
from anchornet_jax.inference import engine, export, stopping
from anchornet_jax.methods import method as protocol
from anchornet_jax.programs import pipeline, predict
from anchornet_jax.runtime import files
from configs import predict as predict_config
from tests import test_distributed
from tests.test_export import (
    CLASSES,
    RULE,
    SIZE,
    exported,  # noqa: F401
    method,  # noqa: F401
)
from tests.test_workdir import HOLD

EXITS = ["glance", "look", "patch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of six images, and two broken files."""
    path = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(6):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((2 * SIZE, SIZE + n))
        image.save(path / f"{n}.png")
    (path / "5.png").rename(path / os.fsdecode(b"5\xff.png"))  # no UTF-8
    (path / "2b.jpg").write_text("no image")
    (path / "9.jpg").write_bytes(b"")
    return path


def good(folder):
    return sorted(folder.glob("*.png"))


@pytest.fixture
def config(exported, folder):  # noqa: F811
    config = predict_config.get_config()
    config.export, config.images = str(exported), f"{folder}/*.png"
    config.pictures = False
    return config


@pytest.fixture
def half(exported, folder, monkeypatch):  # noqa: F811
    """Let half of the images leave at each exit; return what they should get."""
    found = export.load(exported)
    images = [photos.read(p, image_size=SIZE, resize=160) for p in good(folder)]
    trace = protocol.make_trace(found.method)(np.array(images), RULE)
    first = np.median(trace["confidence"][:, 0])
    later = trace["confidence"][trace["confidence"][:, 0] <= first, 1]
    # Between two images, not on one: the engine rounds in another way.
    rule = stopping.ThresholdRule((first, np.sort(later)[:2].mean()))
    found = found._replace(rules={2e6: rule})
    monkeypatch.setattr(export, "load", lambda directory: found)
    exits = rule.exits(trace["confidence"])
    assert set(exits) == {0, 1, 2}
    return trace | {"exit": exits, "macs": found.macs}


def test_predict(config, half, folder, tmp_path, capsys):
    """Everything at once, in the directory of an earlier prediction."""
    config.images, config.pictures = f"{folder}/1.png", True
    pipeline.run(config, tmp_path)
    (old,) = (tmp_path / predict.PICTURES).iterdir()
    capsys.readouterr()
    config.images = f"{folder}/*"
    with pytest.raises(predict.Unreadable, match=r"2 of 8 files .*2b\.jpg: it is none"):
        pipeline.run(config, tmp_path)
    assert not old.exists()
    printed = capsys.readouterr().out.splitlines()
    text = (tmp_path / predict.PREDICTIONS).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["file"] for line in lines] == [
        str(p) for p in sorted(folder.iterdir())
    ]
    bad = {line["file"] for line in lines if "error" in line}
    assert bad == {str(folder / "2b.jpg"), str(folder / "9.jpg")}

    lines = [line for line in lines if "error" not in line]
    for i, (line, said) in enumerate(zip(lines, printed, strict=True)):
        exit = int(half["exit"][i])
        assert line["class"] == CLASSES[half["predicted"][i, exit]]
        assert line["confidence"] == pytest.approx(
            half["confidence"][i, exit], abs=1e-4
        )
        assert (line["exit"], line["left_after"]) == (exit, EXITS[exit])
        assert line["macs"] == half["macs"][exit]
        assert line["time_ms"] > 0
        assert Image.open(line["picture"]).format == "PNG"
        assert f"png: {line['class']}, " in said
        assert f" {line['confidence']:.1%}, left after {EXITS[exit]}, " in said
        assert said.endswith(f" {line['time_ms']:.1f} ms")


def test_batches_without_pictures(config, tmp_path):
    config.batch_size = 4
    summary = pipeline.run(config, tmp_path / "out")
    text = (tmp_path / "out" / predict.PREDICTIONS).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert summary["images"] == len(lines) == 6 and summary["unreadable"] == 0
    assert summary["mean_macs"] == pytest.approx(np.mean([li["macs"] for li in lines]))
    assert summary["budget_macs"] == 2e6
    assert not list((tmp_path / "out" / predict.PICTURES).iterdir())


def test_a_budget_in_milliseconds_is_held(config, tmp_path, monkeypatch):
    cost = np.array([1.0, 2.0, 4.0])
    monkeypatch.setattr(engine.Classifier, "milliseconds", lambda _: cost)
    config.hold, config.budget = "ms", 2.0
    summary = pipeline.run(config, tmp_path)
    assert summary["budget_ms"] == 2 and "budget_macs" not in summary
    assert summary["mean_ms"] == pytest.approx(np.dot(summary["exits"], cost))
    assert summary["mean_macs"] > 0


def test_only_unreadable_files(config, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "warm", lambda classifier: None)  # seconds
    config.images = f"{folder}/*.jpg"
    with pytest.raises(predict.Unreadable, match="2 of 2 files"):
        pipeline.run(config, tmp_path)
    assert len((tmp_path / predict.PREDICTIONS).read_text().splitlines()) == 2


def test_other_files_are_not_touched(config, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="`workdir` is .*which holds other files"):
        pipeline.run(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_inputs_are_not_touched(config, folder, tmp_path):
    """A folder of the user's own that has the name of ours."""
    mine = tmp_path / predict.PICTURES
    shutil.copytree(folder, mine)
    before = sorted(path.name for path in mine.iterdir())
    config.images = f"{mine}/*.png"
    with pytest.raises(ValueError, match="`workdir` is .*which holds other files"):
        pipeline.run(config, tmp_path)
    files.write_sealed(tmp_path / predict.ABOUT, {"settings": {}, "done": True})
    with pytest.raises(ValueError, match="`workdir` is .*which holds the input"):
        pipeline.run(config, tmp_path)
    config.images = f"{folder}/*.png"
    with pytest.raises(ValueError, match="pictures hold files that no prediction made"):
        pipeline.run(config, tmp_path)
    assert sorted(path.name for path in mine.iterdir()) == before


def test_killed_prediction_goes_on(config, folder, tmp_path, monkeypatch):
    """At whatever byte its last line ends; nothing is computed twice."""
    config.images, config.pictures = f"{folder}/*", True
    config.hold = "macs"
    with pytest.raises(predict.Unreadable):
        pipeline.run(config, tmp_path / "whole")

    def lines(name):
        text = (tmp_path / name / predict.PREDICTIONS).read_text()
        found = [json.loads(line) for line in text.splitlines()]
        return [
            {k: v for k, v in one.items() if k not in ("time_ms", "picture")}
            for one in found
        ]

    wanted = lines("whole")
    monkeypatch.setattr(predict, "warm", lambda classifier: None)  # seconds
    for cut in (0, 5, 250):
        shutil.copytree(tmp_path / "whole", tmp_path / f"{cut}")
        about = files.read_sealed(tmp_path / f"{cut}" / predict.ABOUT)
        files.write_sealed(tmp_path / f"{cut}" / predict.ABOUT, about | {"done": False})
        journal = tmp_path / f"{cut}" / predict.PREDICTIONS
        journal.write_bytes(journal.read_bytes()[: len(journal.read_bytes()) - cut])
        with pytest.raises(predict.Unreadable, match="2 of 8 files"):
            pipeline.run(config, tmp_path / f"{cut}")
        assert lines(f"{cut}") == wanted
        pictures = sorted((tmp_path / f"{cut}" / predict.PICTURES).iterdir())
        assert len(pictures) == 6


def test_names_are_fit_to_be_printed(config, folder, tmp_path, capsys, caplog):
    """Escape codes and newlines of a file's name do not reach the terminal."""
    hostile = tmp_path / "in" / "a\x1b[2J\n\rb.png"
    hostile.parent.mkdir()
    shutil.copy(folder / "1.png", hostile)
    hostile.with_suffix(".jpg").touch()
    config.images, config.pictures = f"{hostile.parent}/*", True
    with pytest.raises(predict.Unreadable) as caught:
        pipeline.run(config, tmp_path / "out")
    printed = capsys.readouterr().out
    assert r"a\x1b[2J\n\rb.png: " in printed
    for said in (printed.removesuffix("\n"), str(caught.value), *caplog.messages):
        assert said.isprintable()


def test_what_is_no_file_has_its_line(config, folder, tmp_path, monkeypatch):
    """A pipe would hang, a link may lead nowhere, a folder may be named like a file."""
    monkeypatch.setattr(predict, "warm", lambda classifier: None)  # seconds
    source = tmp_path / "in"
    (source / "d.jpg").mkdir(parents=True)
    os.mkfifo(source / "a.jpg")
    os.symlink("/nowhere", source / "b.jpg")
    (source / "c.jpg").touch(mode=0)
    config.images = f"{source}/*"
    with pytest.raises(predict.Unreadable, match="3 of 3 files could not be read"):
        pipeline.run(config, tmp_path / "out")
    text = (tmp_path / "out" / predict.PREDICTIONS).read_text()
    errors = [json.loads(line)["error"] for line in text.splitlines()]
    assert errors[0] == "it is no regular file"
    assert errors[1] == "it cannot be read: No such file or directory"


def test_an_answer_that_is_not_finite(config, folder, tmp_path, monkeypatch):
    found = export.load(config.export)
    glance = found.method.networks["glance"]
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), glance.variables)
    members = dict(found.method.networks) | {
        "glance": glance._replace(variables=broken)
    }
    made = type(found.method)(members, **found.method.arguments)
    monkeypatch.setattr(export, "load", lambda _: found._replace(method=made))
    config.images = f"{folder}/1.png"
    with pytest.raises(predict.Unreadable, match="the networks' answer is not finite"):
        pipeline.run(config, tmp_path)


def test_two_at_once(config, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        (tmp_path / "out" / "config.json").unlink()
        with pytest.raises(ValueError, match=f"process {process.pid} on .* is working"):
            pipeline.run(config, tmp_path / "out")
        process.kill()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("export", "", "`config.export` is empty"),
        ("export", "/nowhere", "`config.export`: export '/nowhere'"),
        ("images", "/nowhere/*", "`config.images`: .* matches nothing"),
        ("images", "", "`config.images`: .* matches nothing"),
        (
            "budget",
            1.0,
            "`config.budget`: `budgets` holds 1.0; the cheapest exit costs",
        ),
        ("hold", "ms", "`config.budget` is 0.0; with `config.hold=ms` allowed are"),
        ("hold", "time", "`config.hold` is 'time'; allowed are '', 'macs', 'ms'"),
        ("max_pixels", 0, "`config.max_pixels` is 0; allowed are whole numbers from 1"),
        ("batch_size", 0, "`config.batch_size` is 0"),
    ],
)
def test_bad_config_writes_nothing(config, tmp_path, key, value, message):
    config[key] = value
    with pytest.raises(ValueError, match=message):
        pipeline.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_hosts(config, folder, tmp_path):
    """Each takes every other file and writes its lines; process 0 writes the summary."""
    config.images = f"{folder}/*"
    with pytest.raises(predict.Unreadable):
        pipeline.run(config, tmp_path / "one")
    flags = [f"--config.{key}={config[key]}" for key in ("export", "images")]
    status, printed = test_distributed.wait(
        test_distributed.start_main(
            "predict", tmp_path / "two", *flags, "--config.pictures=False"
        )
    )
    assert status == [1, 1], printed  # two files cannot be read
    for text in printed:
        assert "2 of 8 files could not be read" in text

    def lines(path):
        text = (path / predict.PREDICTIONS).read_text()
        return [json.loads(line) for line in text.splitlines()]

    whole = lines(tmp_path / "one")
    for number in range(2):
        own = lines(tmp_path / "two" / f"host_{number}_of_2")
        wanted = whole[number::2]
        assert [line["file"] for line in own] == [line["file"] for line in wanted]
        for key in ("class", "exit", "error"):
            assert [line.get(key) for line in own] == [line.get(key) for line in wanted]
    one, two = (
        files.read_sealed(tmp_path / name / predict.SUMMARY) for name in ("one", "two")
    )
    assert one == two and one["images"] == 6 and one["unreadable"] == 2


def test_hosts_beside_other_files(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    (tmp_path / "host_0_of_3").mkdir()
    with pytest.raises(ValueError, match="holds other files; .* by 2 hosts"):
        predict._own(tmp_path)


def test_main(config, folder, tmp_path, monkeypatch):
    """Exit status 1 after a broken file; without a directory, runs/predict."""
    import main

    monkeypatch.setattr(predict, "warm", lambda classifier: None)  # seconds
    config.images = f"{folder}/2b.jpg"
    monkeypatch.chdir(tmp_path)
    values = {"CONFIG": config, "WORKDIR": None, "COORDINATOR": ""}
    for name, value in {**values, "PROCESSES": None, "PROCESS": None}.items():
        monkeypatch.setattr(main, name, types.SimpleNamespace(value=value))
    monkeypatch.setattr("tensorflow.config.set_visible_devices", lambda *_: None)
    assert main.main(["main.py"]) == 1
    assert (tmp_path / "runs" / "predict" / predict.PREDICTIONS).exists()
