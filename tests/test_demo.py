"""The small demo from end to end, and both notebooks on it, from top to bottom."""

import json
import os
import pathlib

import numpy as np
import pytest

from anchornet_jax import models
from anchornet_jax.inference import export
from anchornet_jax.inference.results import Evaluation
from anchornet_jax.programs import pipeline
from anchornet_jax.runtime import files
from tests.test_pipeline import small_demo
from tests.tiny import Tiny, tiny  # noqa: F401

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
nbformat = pytest.importorskip("nbformat")

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "results"
NOTEBOOKS = ("explore", "reproduce")
SETTINGS = {  # in place of the cell that says what a notebook is about
    "explore": """
from anchornet_jax import models
from tests import tiny
models.MODELS["tiny"] = (tiny.Tiny, {{}})
EXPORT, PHOTO = "{directory}/export", ""
""",
    "reproduce": """
from anchornet_jax import models
from tests import test_pipeline, tiny
models.MODELS["tiny"] = (tiny.Tiny, {{}})
WORKDIR = "{directory}"
config = test_pipeline.small_demo("{data_dir}")
""",
}


def read(name):
    return nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def small_run(data_dir, tmp_path_factory):
    """Run the small demo once; return its directory and summary."""
    directory = tmp_path_factory.mktemp("small") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", (Tiny, {}))
        return directory, pipeline.pipeline(small_demo(data_dir), directory)


def test_demo_end_to_end(data_dir, small_run, tiny):  # noqa: F811
    config, (directory, summary) = small_demo(data_dir), small_run
    written = files.read_sealed(directory / "summary.json")
    assert written == json.loads(json.dumps(summary))
    found = Evaluation.from_json(summary)
    assert found.exits == ["glance", "look", "patch"] and found.box_coverage > 0
    assert list(found.references) == ["full image", "localizer alone", "random patches"]
    random = found.references["random patches"].anytime
    assert found.anytime[0].accuracy == random[0].accuracy  # both begin with the glance
    for point in found.budgeted:
        assert point.cost >= found.anytime[0].cost and point.time_ms > 0
        assert sum(point.exits) == pytest.approx(1) and point.rule["thresholds"]
    assert len(found.exit_time_ms) == 3
    assert all(point.time_ms > 0 for point in found.anytime)
    assert found.reference()[1].time_ms > 0
    assert set(summary["seconds"]) == set(config.stages)
    names = set(os.listdir(directory))
    assert {
        "report.html",
        "accuracy_cost.png",
        "accuracy_time.png",
        "examples.png",
    } <= names
    found = export.load(directory / "export")
    assert [*found.rules] == [row["budget"] for row in summary["budgeted"]]
    assert found.method.inputs == 3 and len(found.classes) == 10  # digits

    times = {p: p.stat().st_mtime_ns for p in directory.glob("*/*.json")}
    assert pipeline.pipeline(config, directory) == summary  # all skipped
    assert times == {p: p.stat().st_mtime_ns for p in directory.glob("*/*.json")}


@pytest.fixture
def run(small_run, data_dir, monkeypatch):
    """Return the function that executes a notebook on the small demo.

    The stages are finished and not trained again; test_pipeline.py is for that.
    """
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    directory, _ = small_run

    def execute(name):
        notebook = read(name)
        (cell,) = [c for c in notebook.cells if c.id == f"{name}-settings"]
        cell.source = SETTINGS[name].format(directory=directory, data_dir=data_dir)
        client = nbclient.NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}
        )
        return client.execute()  # raises what a cell raises

    return execute


def outputs(notebook, kind):
    """Return all outputs of a MIME type."""
    return [
        output["data"][kind]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if kind in output.get("data", {})
    ]


def printed(notebook):
    return "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stdout"
    )


def test_golden_summary(small_run):
    """The numbers of the first code of this pipeline, see tests/golden/results."""
    wanted = json.loads((GOLDEN / "pipeline.json").read_text())
    directory, summary = small_run
    found = Evaluation.from_json(summary)
    assert found.classes == wanted["classes"]
    assert found.box_coverage == pytest.approx(
        wanted["localizer"]["box_coverage"], rel=1e-4
    )
    for name, key in (("localizer alone", "localizer"), ("full image", "full_image")):
        (point,) = found.references[name].anytime
        assert point.cost == wanted[key]["macs"]
        assert point.accuracy == wanted[key]["accuracy"]
    assert [{"accuracy": p.accuracy, "macs": p.cost} for p in found.anytime] == wanted[
        "exits"
    ]
    (budgeted,) = found.budgeted
    (golden,) = wanted["budgeted"]
    assert budgeted.rule == golden["rule"] and budgeted.exits == golden["exits"]
    assert (budgeted.accuracy, budgeted.cost) == (
        golden["accuracy"],
        golden["mean_macs"],
    )
    for split, means in wanted["mean_confidence"].items():
        with np.load(directory / "evaluate" / f"{split}.npz") as table:
            mean = table["confidence"].mean(0)
        # Of 32 images one has two patches that are equally good to the last bits.
        np.testing.assert_allclose(mean, means, rtol=2e-3)


@pytest.mark.slow
def test_explore(run):
    notebook = run("explore")
    assert len(outputs(notebook, "image/png")) == 8
    text = printed(notebook)
    assert "ReceptiveField(size=95, stride=8) 9 x 9" in text  # 2022, Table 1; 160 px
    sums = [line for line in text.splitlines() if "logit" in line]
    assert len(sums) == 2
    for line in sums:  # the patches' parts and the bias are the logit
        total, logit = line.split(": ")[1].split("; logit ")
        assert sum(map(float, total.split(" + "))) == pytest.approx(
            float(logit), abs=2e-3
        )


@pytest.mark.slow
def test_reproduce(run):
    notebook = run("reproduce")
    assert len(outputs(notebook, "image/png")) == 4
    assert "the full image: " in printed(notebook)
    assert "'report.html'" in printed(notebook)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_short(name):
    notebook = read(name)
    assert len(notebook.cells) <= 25
    for cell in notebook.cells:
        lines = [
            line
            for line in cell.source.splitlines()
            if line and not line.startswith(("import ", "from "))
        ]
        assert len(lines) <= 10, cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_kept(name):
    """So that they can be read where notebooks are only shown."""
    notebook = read(name)
    assert len(outputs(notebook, "image/png")) >= 4
    assert not [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    text = (ROOT / "colab" / f"{name}.ipynb").read_text()
    assert len(text) < 2_000_000 and "/tmp/" not in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_badges(name):
    address = f"blob/main/colab/{name}.ipynb"
    assert address in read(name).cells[0].source
    assert address in (ROOT / "README.md").read_text()
