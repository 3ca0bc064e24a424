"""Both notebooks run from top to bottom, and are as short as they promise."""

import pathlib

import pytest

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
nbformat = pytest.importorskip("nbformat")

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = ("explore", "reproduce")
# In place of the notebook's cell of settings. An AnchorNet of half the blocks compiles in
# half the time; its patches have 31 pixels (2022, Table 1, fourth row).
SMALL = """
from anchornet_jax import models, receptive_field
from anchornet_jax.models import anchornet as network
from tests import tiny, test_pipeline
network.EXTRACTOR = network.EXTRACTOR[:3]
table = [(row.kernel, row.stride) for row in (network.STEM, *network.EXTRACTOR)]
network.AnchorNet.field = receptive_field.accumulate(table)[-1]
models.MODELS["tiny"] = (tiny.Tiny, {{}})
EXPORT, WORKDIR, PHOTO = "{directory}/export", "{directory}", ""
config = test_pipeline.small_demo("{data_dir}")
"""


def read(name):
    return nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, data_dir):
    """Run the small demo by one notebook, then the other on its export."""
    directory = tmp_path_factory.mktemp("notebooks") / "demo"
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        for name in ("reproduce", "explore"):
            notebook = read(name)
            (cell,) = [c for c in notebook.cells if c.id == f"{name}-settings"]
            cell.source = SMALL.format(directory=directory, data_dir=data_dir)
            client = nbclient.NotebookClient(
                notebook,
                timeout=300,
                resources={"metadata": {"path": str(ROOT)}},
            )
            done[name] = client.execute()  # raises what a cell raises
    return done


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


def test_explore(ran):
    assert len(outputs(ran["explore"], "image/png")) == 8
    text = printed(ran["explore"])
    assert "ReceptiveField(size=31, stride=8) 17 x 17" in text  # (160 - 31) // 8 + 1
    sums = [line for line in text.splitlines() if "logit" in line]
    assert len(sums) == 2
    for line in sums:  # the patches' parts and the bias are the logit
        total, logit = line.split(": ")[1].split("; logit ")
        assert sum(map(float, total.split(" + "))) == pytest.approx(
            float(logit), abs=2e-3
        )


def test_reproduce(ran):
    assert len(outputs(ran["reproduce"], "image/png")) == 4
    assert "the full image: " in printed(ran["reproduce"])
    assert "'report.html'" in printed(ran["reproduce"])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_short(name):
    notebook = read(name)
    assert len(notebook.cells) <= 25
    for cell in notebook.cells:
        assert len(cell.source.splitlines()) <= 10, cell.source


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
