"""The report: a page that stands alone and says what the numbers say."""

import base64
import dataclasses
import html.parser
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from anchornet_jax.figures import pictures, plots, published, report
from anchornet_jax.inference.results import Reference
from anchornet_jax.runtime import files
from tests import fake_results

VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Collect images, cells and text; fail on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.rows, self.tags = [], [], [], set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    summary = fake_results.summary()
    summary.seconds["<script>stage"] = 3.0
    summary.references["<u>random"] = summary.references.pop("random patches")
    summary = dataclasses.replace(summary, data="<i>plates & more")
    fake_results.write(directory, summary, fake_results.arrays())
    assert report.write(directory) == directory / "report.html"
    return directory


@pytest.fixture(scope="module")
def text(directory):
    return (directory / "report.html").read_text(encoding="utf-8")


def test_figures_are_files_and_in_the_page(directory, text):
    names = {path.name for path in directory.iterdir()}
    figures = ("accuracy_cost", "accuracy_time", "examples", "accuracy_exits")
    figures += ("exit_distribution",)
    expected = {f"{name}.{suffix}" for name in figures for suffix in ("png", "svg")}
    assert names == expected | {"report.html", "summary.json", "examples.npz"}
    images = Page(text).images
    assert len(images) == len(figures)
    for name, image in zip(figures, images):
        kind, data = image["src"].split(";base64,")
        suffix = {"data:image/png": "png", "data:image/svg+xml": "svg"}[kind]
        assert base64.b64decode(data) == (directory / f"{name}.{suffix}").read_bytes()
        assert image["alt"]


def test_page_stands_alone(directory, text):
    assert not re.search(
        r"https?:|//|url\(|@import", re.sub(r"base64,[^\"]*", "", text)
    )
    assert not Page(text).tags & {"script", "link", "iframe", "object"}
    for path in directory.glob("*.svg"):
        for target in re.findall(r'href="([^"]*)"', path.read_text()):
            assert target.startswith(("#", "data:"))


def test_names_are_escaped(text):
    assert "<title>anchornet on &lt;i&gt;plates &amp; more</title>" in text
    assert ["<script>stage", "3.0"] in Page(text).rows
    assert not Page(text).tags & {"i", "u"}


def test_setting(text):
    assert "<p>3 classes, 3 exits; fuse logits.</p>" in text  # networks are left out


def test_tables(text):
    rows = [[cell.replace("\u00a0", " ") for cell in row] for row in Page(text).rows]
    assert [row for row in rows if len(row) == 5] == [
        ["method", "all leave after", "accuracy", "multiply-adds", "ms"],
        ["anchornet", "glance", "60.0 %", "10.0 M", "1.00"],
        ["anchornet", "look", "80.0 %", "30.0 M", "4.00"],
        ["anchornet", "patch 2", "90.0 %", "40.0 M", "5.00"],
        ["full image", "whole image", "90.0 %", "100.0 M", "10.00"],
        ["<u>random", "glance", "60.0 %", "10.0 M", "–"],
        ["<u>random", "look", "65.0 %", "30.0 M", "–"],
        ["<u>random", "patch 2", "70.0 %", "40.0 M", "–"],
    ]
    budgets = [row for row in rows if len(row) == 9]
    assert budgets == [
        ["budget", "used", "ms", "accuracy", "mean steps", "glance", "look", "patch 2",
         "thresholds"],
        ["20.0 M", "19.0 M", "2.25", "82.0 %", "1.75", "50.0 %", "25.0 %", "25.0 %",
         "0.750, never"],
        ["30.0 M", "29.0 M", "3.25", "88.0 %", "2.25", "25.0 %", "25.0 %", "50.0 %",
         "0.750, never"],
    ]  # fmt: skip
    assert ["together", "283.1"] in rows
    assert "93.0\u00a0% of the box" in text


def test_bare_results(tmp_path):
    """No full-image network, boxes, thresholds or times; more images than one figure."""
    summary, arrays = fake_results.summary(), fake_results.arrays()
    bare = [
        dataclasses.replace(point, rule=None, time_ms=None)
        for point in summary.budgeted
    ]
    summary = dataclasses.replace(
        summary,
        references={},
        box_coverage=None,
        seconds=None,
        exit_time_ms=None,
        budgeted=bare,
    )
    del arrays["box"]
    arrays = {k: np.concatenate([v, v]) for k, v in arrays.items()}
    fake_results.write(tmp_path, summary, arrays)
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert len(Page(page).images) == 5
    assert (tmp_path / "examples_2.png").exists()
    for word in ("full image</td>", "box around", "thresholds", "seconds"):
        assert word not in page


@pytest.mark.parametrize(
    "accuracies, verb, accuracy, times",
    [
        ((0.90, 0.95), "matches", 90, 0.29),  # the cheapest that matches
        ((0.80, 0.91), "matches", 91, 1.2),
        ((0.89, 0.895), "comes within one point of", 89, 0.29),
        ((0.82, 0.88), "stays 2.0 points below", 88, 1.2),
    ],
)
def test_finding_says_what_is_true(accuracies, verb, accuracy, times):
    summary = fake_results.summary()
    rows = [
        dataclasses.replace(row, accuracy=share, cost=macs)
        for row, share, macs in zip(summary.budgeted, accuracies, (29e6, 120e6))
    ]
    summary = dataclasses.replace(summary, budgeted=rows)
    said = report.finding(summary).replace("\u00a0", " ")
    assert said.startswith(
        f"Early exit {verb} full image on the test images ({accuracy}.0 % against "
        f"90.0 % right) at {times:.2f} times its multiply-adds and 0."
    )
    untimed = {"full image": Reference(["whole image"], fake_results.single().anytime)}
    summary = dataclasses.replace(summary, references=untimed)
    assert report.finding(summary).endswith("times its multiply-adds.")


def test_finding_without_a_reference():
    summary = dataclasses.replace(fake_results.summary(), references={})
    assert report.finding(summary).replace("\u00a0", " ") == (
        "At its best early exit is right on 88.0 % of the test images, at 29.0 M "
        "multiply-adds per image."
    )


def test_method_with_one_exit(tmp_path):
    """Nothing to decide: no budgets, and only the images are shown."""
    arrays = fake_results.arrays()
    for name in ("boxes", "heatmap", "extent"):
        del arrays[name]
    arrays |= {name: arrays[name][:, :1] for name in ("predicted", "confidence")}
    arrays["exit"] = np.zeros(4, int)
    fake_results.write(tmp_path, fake_results.single(), arrays)
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "static on plates" in page and "Budgeted" not in page
    assert len(Page(page).images) == 2  # cost, and the examples
    assert "At its best static is right on 90.0\u00a0%" in page
    assert "3 classes, 1 exit; input_size 0." in page


@pytest.mark.parametrize(
    "data, overlaid",
    [("imagenet2012", True), ("imagenet2012:5.1.0", True), ("imagenette", False)],
)
def test_published_curves_only_beside_imagenet(tmp_path, monkeypatch, data, overlaid):
    seen = {}

    def accuracy_cost(summary, *, x="cost", published=None):
        if x == "cost":
            seen["published"] = published
        return plots.accuracy_exits(summary)

    monkeypatch.setattr(plots, "accuracy_cost", accuracy_cost)
    monkeypatch.setattr(pictures, "examples", lambda *_: Figure())
    summary = dataclasses.replace(fake_results.summary(), data=data)
    fake_results.write(tmp_path, summary, fake_results.arrays())
    report.write(tmp_path)
    expected = published.BUDGETED + published.STATIC if overlaid else ()
    assert seen["published"] == expected


def test_foreign_input_writes_nothing(tmp_path):
    files.write_sealed(tmp_path / "summary.json", {})
    with pytest.raises(ValueError, match="summary.json: `summary.data` is missing"):
        report.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_boxes_outside_the_images_write_nothing(tmp_path):
    arrays = fake_results.arrays()
    arrays["boxes"][0, 1] = 40, 40, 60, 60
    fake_results.write(tmp_path, fake_results.summary(), arrays)
    with pytest.raises(ValueError, match=r"`boxes` holds \[40, 40, 60, 60\]"):
        report.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"summary.json", "examples.npz"}


def doubtful(accuracies, images=300, **changes):
    """Return what the report finds of anytime accuracies."""
    summary = fake_results.summary()
    points = [
        dataclasses.replace(point, accuracy=share)
        for point, share in zip(summary.anytime, accuracies)
    ]
    summary = dataclasses.replace(
        summary, anytime=points, budgeted=[], images=images, **changes
    )
    return report.finding(summary).replace("\u00a0", " ")


def test_patches_that_do_not_help():
    """Two points on 300 images are chance, on 30,000 they are not."""
    said = doubtful((0.6, 0.61, 0.62))
    assert said.startswith(
        "Patches do not help: after the glance alone 60.0 ± 2.8 % of the test images "
        "are right, at best 62.0 ± 2.8 % with more; random patches are as good as "
    )
    assert "do not help" not in doubtful((0.6, 0.61, 0.62), images=30_000)
    assert doubtful((0.6, 0.59, 0.58), images=None).startswith("Patches do not help")


def test_random_patches_that_are_as_good():
    said = doubtful((0.5, 0.6, 0.71))
    assert said.startswith(
        "Random patches are as good as those that were chosen (70.0 ± 2.6 % against "
        "71.0 ± 2.6 % right). "
    )


def test_a_reference_that_is_no_measure():
    """Clothes that fill the frame: 43 % at the glance, 33 % on the full image."""
    poor = {
        "full image": Reference(
            ["whole image"],
            [dataclasses.replace(fake_results.single().anytime[0], accuracy=0.333)],
        )
    }
    said = doubtful((0.43, 0.37, 0.33), references=poor)
    assert said.startswith("Patches do not help: after the glance alone 43.0 ± 2.9 %")
    assert (
        "; full image is no measure: it is right on 33.3 ± 2.7 %, fewer than after the "
        "glance alone (43.0 ± 2.9 %). Anchornet matches" in said
    )


def test_all_leave_at_the_glance():
    summary = fake_results.summary()
    rows = [
        dataclasses.replace(row, exits=[0.997, 0.003, 0.0]) for row in summary.budgeted
    ]
    said = report.finding(dataclasses.replace(summary, budgeted=rows))
    assert said.startswith(
        "At every budget 99.7\u00a0% of the images or more leave after the glance. "
    )


def test_few_images_carry_their_error(tmp_path):
    summary = dataclasses.replace(fake_results.summary(), images=400)
    fake_results.write(tmp_path, summary, fake_results.arrays())
    page = report.write(tmp_path).read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "60.0 ± 2.4 %" in page and "82.0 ± 1.9 %" in page
    assert "rest on 400 test images; ± is the standard error" in page
