"""Several evaluations in one figure and one table."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest

from anchornet_jax.data import loading
from anchornet_jax.figures import comparison, published
from anchornet_jax.inference import results
from anchornet_jax.programs import compare, evaluate, pipeline
from anchornet_jax.runtime import files, networks
from configs import common
from configs import compare as compare_config
from tests import fake_results
from tests import tiny as tiny_network
from tests.test_report import Page
from tests.tiny import tiny  # noqa: F401


@pytest.fixture
def runs(tmp_path):
    """Write two evaluations; return their directories."""
    other = dataclasses.replace(
        fake_results.single(), method={"name": "<b>static", "input_size": 0}
    )
    for name, made in (("a", fake_results.summary()), ("<i>b", other)):
        (tmp_path / name).mkdir()
        fake_results.write(tmp_path / name, made, fake_results.arrays())
    return tmp_path / "a", tmp_path / "<i>b"


def config(*paths):
    made = compare_config.get_config()
    made.runs = ",".join(map(str, paths))
    return made


def test_compare(runs, tmp_path):
    made = pipeline.run(config(*runs), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {
        f"{n}.{s}" for n in ("compare_cost", "compare_time") for s in ("png", "svg")
    }
    assert names == figures | {
        "compare.html",
        "compare.json",
        "config.json",
        ".lock",
    }
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found == json.loads(json.dumps(made)) and list(found) == ["a", "<i>b"]
    assert results.Evaluation.from_json(found["a"]) == fake_results.summary()
    page = Page((tmp_path / "out" / "compare.html").read_text())
    rows = [[cell.replace("\u00a0", " ") for cell in row] for row in page.rows]
    assert ["a", "budgeted", "88.0 %", "29.0 M", "3.25"] in rows
    assert ["a", "all leave after look", "80.0 %", "30.0 M", "4.00"] in rows
    assert ["<i>b", "all leave after whole image", "90.0 %", "100.0 M", "–"] in rows
    assert len(page.images) == 2


def test_page_stands_alone(runs, tmp_path):
    """Both figures are in it, nothing is fetched, and names are text."""
    out = tmp_path / "out"
    compare.compare(config(*runs), out)
    text = (out / "compare.html").read_text(encoding="utf-8")
    page = Page(text)
    bare = re.sub(r"base64,[^\"]*", "", text)
    assert not re.search(r"https?:|//|url\(|@import", bare)
    assert not page.tags & {"script", "link", "iframe", "object", "i", "b"}
    for name, image in zip(("compare_cost", "compare_time"), page.images, strict=True):
        data = image["src"].removeprefix("data:image/svg+xml;base64,")
        assert base64.b64decode(data) == (out / f"{name}.svg").read_bytes()
    assert [image["alt"] for image in page.images] == [
        "Accuracy against cost",
        "Accuracy against time",
    ]
    assert "<title>2 runs on plates</title>" in text
    assert "Milliseconds on cpu." in text
    assert "&lt;i&gt;b is the most accurate at its best: 90.0\u00a0%" in text
    assert len([row for row in page.rows if len(row) == 5]) == 1 + 2 + 3 + 1


def test_without_times(tmp_path):
    """No second figure, and nothing about a device."""
    path = comparison.write(tmp_path, {"a": fake_results.single()})
    text = path.read_text(encoding="utf-8")
    assert len(Page(text).images) == 1 and "Milliseconds on" not in text
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"compare.html", "compare_cost.png", "compare_cost.svg"}


@pytest.mark.parametrize("count", [1, 5, 8])
def test_many_runs_and_any_names(tmp_path, count):
    """No name is a formula or left out, and what is drawn is named once."""
    names = ["_hidden", "$\\nonsense$", "$x^2$", *"abcde"][:count]
    found = {name: fake_results.summary() for name in names}
    figure = comparison.draw(found)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    alone = ["full image", "random patches"] if count == 1 else []
    wanted = [f"{n}, {w}" for n in names for w in ("budgeted", "anytime")]
    assert labels == wanted + alone
    looks = {
        (line.get_color(), line.get_marker(), line.get_linestyle())
        for line in figure.axes[0].lines
    }
    assert len(looks) == 2 * min(count, len(comparison.LOOKS)) + len(alone)
    assert comparison.write(tmp_path, found).exists()


def test_published_figures(runs, tmp_path):
    """The paper's Figures 5 and 6, each source in the legend; the runs are not ImageNet's."""
    made = config(*runs)
    made.published = "imagenet2012"
    pipeline.run(made, tmp_path / "out")
    text = (tmp_path / "out" / "compare.html").read_text()
    assert len(Page(text).images) == 4
    for curves in (published.BUDGETED, published.ANYTIME):
        (axes,) = comparison.draw({}, curves=curves).axes
        assert len(axes.lines) == len(curves)
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert all(c.source in label for c, label in zip(curves, legend, strict=True))
    made.published = "mnist"
    with pytest.raises(
        ValueError, match=r"`config.published` holds \['mnist'\]; choose"
    ):
        pipeline.run(made, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_imagenet_runs_stand_among_the_published(tmp_path):
    found = {"mine": dataclasses.replace(fake_results.summary(), data="imagenet2012")}
    text = comparison.write(tmp_path, found).read_text()
    assert len(Page(text).images) == 4
    (axes,) = comparison.draw(found, "cost", published.BUDGETED).axes
    assert axes.lines[0].get_label() == "mine, budgeted"


def test_points():
    """Costs and percent, cheapest first, though the evaluation has them reversed."""
    (axes,) = comparison.draw({"a": fake_results.summary()}).axes
    lines = {line.get_label(): line for line in axes.lines}
    found = np.column_stack(lines["a, budgeted"].get_data())
    np.testing.assert_allclose(found, [[19e6, 82], [29e6, 88]])
    found = np.column_stack(lines["a, anytime"].get_data())
    np.testing.assert_allclose(found, [[10e6, 60], [30e6, 80], [40e6, 90]])
    assert axes.get_xlabel() == "FLOPs (multiply-adds)"
    assert axes.get_ylabel() == "Top-1 accuracy (%)"
    assert axes.get_xlim()[0] == 0


def test_lines(runs):
    found = {"a": fake_results.summary(), "b": fake_results.single()}
    lines = {line.get_label() for line in comparison.draw(found).axes[0].lines}
    assert lines == {"a, budgeted", "a, anytime", "b, anytime"}
    (timed,) = {
        line.get_label() for line in comparison.draw(found, "time_ms").axes[0].lines
    } - {"a, budgeted"}
    assert timed == "a, anytime"  # b was not timed


def test_published_results_on_the_same_data(tmp_path):
    """Points with their source; a line across where the cost was not published."""
    made = fake_results.summary()
    full = dataclasses.replace(made.references["full image"], peak_bytes=6e9)
    made = dataclasses.replace(
        made,
        data="megapixel_mnist/ats",
        peak_bytes=4e8,
        references={"full image": full},
    )
    ips = "iterative patch selection, published"
    for x, value in {"cost": None, "time_ms": 23.47, "peak_bytes": 1971322880}.items():
        axes = comparison.draw({"a": made}, x).axes[0]
        lines = {line.get_label(): line for line in axes.lines}
        (heights,) = {tuple(lines["attention sampling, published"].get_ydata())}
        assert set(heights) == {80.0} and len(heights) == 2
        assert set(lines[ips].get_ydata()) == {99.1}
        if value:
            assert lines[ips].get_xdata() == pytest.approx([value], rel=1e-3)
    # Of memory one point each: what all steps need.
    assert lines["a, anytime"].get_xydata().tolist() == [[4e8, 90]]
    assert lines["full image"].get_xydata().tolist() == [[6e9, 90]]
    assert "a, budgeted" not in lines
    text = comparison.write(tmp_path, {"a": made}).read_text(encoding="utf-8")
    page = Page(text)
    rows = [[cell.replace("\u00a0", " ") for cell in row] for row in page.rows]
    assert [
        "a",
        "all leave after patch 2",
        "90.0 %",
        "40.0 M",
        "5.00",
        "400 MB",
    ] in rows
    full = ["full image", "all leave after whole image", "90.0 %", "100.0 M", "10.00"]
    assert [*full, "6,000 MB"] in rows
    others = [row[2:] for row in rows if row[1:2] == ["published"]]
    assert others == [["80.0 %", "–", "–", "–"], ["99.1 %", "–", "23.47", "1,971 MB"]]
    assert len(page.images) == 3 and "Katharopoulos and Fleuret, 2019" in text
    assert "this cost was not published" in text


def test_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="`config.runs` is empty"):
        compare.compare(config(), tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere/summary.json cannot be read"):
        compare.compare(config(runs[0], "/nowhere"), tmp_path / "out")
    with pytest.raises(ValueError, match="each run once"):
        compare.compare(config(runs[0], runs[0]), tmp_path / "out")
    other = dataclasses.replace(fake_results.summary(), data="imagenette")
    fake_results.write(runs[1], other, fake_results.arrays())
    with pytest.raises(ValueError, match="<i>b, evaluated on imagenette with 3"):
        compare.compare(config(*runs), tmp_path / "out")
    other = dataclasses.replace(fake_results.summary(), classes=["cat", "dog"])
    fake_results.write(runs[1], other, fake_results.arrays())
    with pytest.raises(ValueError, match="<i>b, evaluated on plates with 2 classes"):
        compare.compare(config(*runs), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_patterns(runs, tmp_path):
    """They name what fits them, in order; a directory may be called like one."""
    made = compare.compare(config(f"{tmp_path}/*"), tmp_path / "out")
    assert list(made) == ["<i>b", "a"]
    with pytest.raises(ValueError, match="holds /nowhere/.*, which no directory fits"):
        compare.compare(config("/nowhere/*"), tmp_path / "other")
    runs[0].rename(tmp_path / "a[1]")
    assert list(compare.compare(config(tmp_path / "a[1]"), tmp_path / "o")) == ["a[1]"]


def test_spaces_and_commas(runs, tmp_path):
    made = compare.compare(config(f" {runs[0]} ", " ", runs[1], ""), tmp_path / "out")
    assert list(made) == ["a", "<i>b"]


@pytest.fixture
def evaluated(data_dir, tmp_path, tiny):  # noqa: F811
    """Return the directories of two evaluations of a network, at 32 and 48 px."""
    one = loading.prepare("plates/small", data_dir=data_dir, image_size=64)
    model = {"name": "tiny", "num_classes": len(one.classes)}
    variables = tiny_network.drawn(tiny_network.Tiny(len(one.classes)), 64)
    networks.save(tmp_path / "network", model, variables, classes=one.classes)
    for size in (32, 48):
        made = tiny_network.config(data_dir, program="evaluate")
        made.data.image_size, made.timing.images = 64, 0
        made.method = common.static(str(tmp_path / "network"), size)
        evaluate.evaluate(made, tmp_path / f"at_{size}")
    return tmp_path / "at_32", tmp_path / "at_48"


def test_remeasure(evaluated, tmp_path):
    """All methods are timed in one process; what they found stays."""
    made = config(*evaluated)
    made.remeasure = True
    made.timing.images, made.timing.batch_size = 16, 8
    found = compare.compare(made, tmp_path / "out")
    for path in evaluated:
        before, now = results.read(path), results.Evaluation.from_json(found[path.name])
        assert now.device and before.device is None
        assert all(p.time_ms > 0 for p in now.anytime)
        untimed = [dataclasses.replace(p, time_ms=None) for p in now.anytime]
        assert untimed == before.anytime
    assert (tmp_path / "out" / "compare_time.svg").exists()


@pytest.mark.parametrize(
    ("images", "batch_size", "message"),
    [
        (0, 8, "`config.timing.images` is 0; `config.remeasure` needs some"),
        (4, 8, "`config.timing.images` is 4 and `batch_size` 8"),
    ],
)
def test_what_cannot_be_measured(runs, tmp_path, images, batch_size, message):
    made = config(*runs)
    made.remeasure = True
    made.timing.images, made.timing.batch_size = images, batch_size
    with pytest.raises(ValueError, match=message):
        compare.compare(made, tmp_path / "out")
    made.timing.images = 8
    with pytest.raises(ValueError, match="a/config.json cannot be read: No such file"):
        compare.compare(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"program": "export"}, "b holds a run of export, not an evaluation"),
        ({"data": {"image_size": 96, "resize": 0}}, "`data.image_size` is 96; the fir"),
        ({"data": {"image_size": 64, "resize": 9}}, "`data.resize` is 9; the first"),
    ],
)
def test_runs_that_cannot_be_measured_together(runs, tmp_path, change, message):
    plain = {"program": "evaluate", "data": {"image_size": 64, "resize": 0}}
    for path, one in zip(runs, (plain, plain | change)):
        files.write_sealed(path / "config.json", one)
    made = config(*runs)
    made.remeasure = True
    with pytest.raises(ValueError, match=message):
        compare.compare(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_config_of_a_pipeline(tmp_path):
    """The last evaluation inside it, whatever its stage is called."""
    stages = {"first": "evaluate", "second": "evaluate", "export": "export"}
    for name, program in stages.items():
        (tmp_path / name).mkdir()
        one = {"program": program, "name": name}
        files.write_sealed(tmp_path / name / "config.json", one)
    whole = {
        "program": "pipeline",
        "order": [*stages],
        "stages": {name: {"program": program} for name, program in stages.items()},
    }
    files.write_sealed(tmp_path / "config.json", whole)
    assert compare._config(tmp_path)["name"] == "second"


def test_names_tell_runs_apart(runs, tmp_path):
    (tmp_path / "c").mkdir()
    runs[0].rename(tmp_path / "c" / "evaluate")
    (tmp_path / "d").mkdir()
    runs[1].rename(tmp_path / "d" / "evaluate")
    paths = (tmp_path / "c" / "evaluate", tmp_path / "d" / "evaluate")
    made = compare.compare(config(*paths), tmp_path / "out")
    assert list(made) == [str(path) for path in paths]
