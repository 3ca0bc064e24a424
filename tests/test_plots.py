"""The curves: what is drawn, how it is labelled, and that it is written whole."""

import dataclasses
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure

from anchornet_jax.figures import comparison, plots, published
from anchornet_jax.inference import results
from tests import fake_results


@pytest.fixture
def summary():
    return fake_results.summary()


def lines(figure):
    """Return the lines of the first axes by label."""
    return {line.get_label(): line for line in figure.axes[0].lines}


def points(line):
    return np.column_stack(line.get_data())


def luminance(color):
    return np.dot(colors.to_rgb(color), (0.2126, 0.7152, 0.0722))


def test_exits_grow_darker():
    values = [luminance(plots.exit_color(exit)) for exit in range(8)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 8
    assert plots.exit_color(8) == plots.exit_color(0)


def test_methods_differ_without_colour():
    looks = [(s["marker"], s["linestyle"]) for s in plots.STYLES.values()]
    assert len(set(looks)) == len(looks)
    markers = [look["marker"] for look in comparison.LOOKS]
    assert len(set(markers)) == len(markers)


def test_accuracy_cost(summary):
    figure = plots.accuracy_cost(summary)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "FLOPs (multiply-adds)"
    assert axes.get_ylabel() == "Top-1 accuracy (%)"
    drawn = lines(figure)
    np.testing.assert_allclose(  # cheapest first, though the summary has them reversed
        points(drawn["early exit, budgeted"]), [[19e6, 82], [29e6, 88]]
    )
    np.testing.assert_allclose(
        points(drawn["same exit for all, anytime"]),
        [[10e6, 60], [30e6, 80], [40e6, 90]],
    )
    np.testing.assert_allclose(points(drawn["full image"]), [[100e6, 90]])
    np.testing.assert_allclose(
        points(drawn["random patches"]), [[10e6, 60], [30e6, 65], [40e6, 70]]
    )
    assert drawn["full image"].get_marker() == "*"
    (level,) = (line for name, line in drawn.items() if name.startswith("_"))
    assert set(level.get_ydata()) == {90}
    assert drawn["early exit, budgeted"].get_color() == "#0072B2"
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    assert axes.get_xlim()[0] == 0
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [label for label in drawn if not label.startswith("_")]


def test_accuracy_cost_without_a_full_image_network(summary):
    summary = dataclasses.replace(summary, references={})
    own = ["early exit, budgeted", "same exit for all, anytime"]
    assert [*lines(plots.accuracy_cost(summary))] == own  # no level either
    assert [*lines(plots.accuracy_exits(summary))] == ["anchornet"]


def test_references_differ(summary):
    """The best of those with one exit is the level; no two look alike."""
    single, several = summary.references.values()
    more = {f"single {n}": single for n in range(3)}
    more |= {f"several {n}": several for n in range(3)}
    best = [dataclasses.replace(single.anytime[0], accuracy=0.95)]
    more["single 1"] = dataclasses.replace(single, anytime=best)
    summary = dataclasses.replace(summary, references=more)
    drawn = lines(plots.accuracy_cost(summary))
    for get in ("get_marker", "get_color"):
        looks = {(getattr(drawn[n], get)(), drawn[n].get_linestyle()) for n in more}
        assert len(looks) == 6
    assert set(lines(plots.accuracy_exits(summary))["single 1"].get_ydata()) == {95}


def test_accuracy_exits_leaves_out_what_has_other_exits(summary):
    several = summary.references["random patches"]
    fewer = dataclasses.replace(
        several, exits=several.exits[:2], anytime=several.anytime[:2]
    )
    summary = dataclasses.replace(summary, references={"fewer": fewer})
    assert [*lines(plots.accuracy_exits(summary))] == ["anchornet"]
    assert "fewer" in lines(plots.accuracy_cost(summary))


def test_accuracy_cost_in_milliseconds(summary):
    times = [point.cost / 1e8 for point in summary.budgeted]
    summary = dataclasses.replace(
        summary,
        budgeted=results.with_time(summary.budgeted, times),
        anytime=results.with_time(summary.anytime, [None] * 3),
    )
    figure = plots.accuracy_cost(summary, x="time_ms")
    assert figure.axes[0].get_xlabel() == "Time per image (ms)"
    drawn = lines(figure)
    np.testing.assert_allclose(
        points(drawn["early exit, budgeted"]), [[0.19, 82], [0.29, 88]]
    )
    np.testing.assert_allclose(points(drawn["full image"]), [[10, 90]])
    assert "same exit for all, anytime" not in drawn  # they were not timed
    assert "random patches" not in drawn and not figure.axes[0].texts


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"x": "flops"}, "`x` is 'flops'; choose one of"),
        ({"x": "time_ms", "published": published.STATIC}, "multiply-adds only"),
    ],
)
def test_accuracy_cost_refuses(summary, kwargs, message):
    with pytest.raises(ValueError, match=message):
        plots.accuracy_cost(summary, **kwargs)


def test_cost_that_was_not_measured(summary):
    with pytest.raises(ValueError, match="no point of `summary` has"):
        plots.accuracy_cost(fake_results.single(), x="time_ms")


def test_published_points_carry_their_source(summary):
    curves = published.BUDGETED + published.STATIC
    figure = plots.accuracy_cost(summary, published=curves)
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    drawn = lines(figure)
    for curve in curves:
        name = ", ".join(filter(None, (curve.method, curve.network)))
        label = f"{name}\n({curve.source})"
        assert label in labels
        assert drawn[label].get_linestyle() == "None"
        expected = np.array(curve.points) * [1e9, 1]
        np.testing.assert_allclose(points(drawn[label]), expected)
    gfnet = [line for label, line in drawn.items() if label.startswith("GFNet")]
    assert [line.get_fillstyle() for line in gfnet] == ["full", "none"]
    assert {line.get_color() for line in gfnet} == {plots.STYLES["GFNet"]["color"]}
    assert "ResNet-18" in [text.get_text() for text in figure.axes[0].texts]


def test_accuracy_exits(summary):
    figure = plots.accuracy_exits(summary)
    drawn = lines(figure)
    np.testing.assert_allclose(points(drawn["anchornet"]), [[0, 60], [1, 80], [2, 90]])
    np.testing.assert_allclose(
        points(drawn["random patches"]), [[0, 60], [1, 65], [2, 70]]
    )
    assert set(drawn["full image"].get_ydata()) == {90}
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == fake_results.EXITS


def test_exit_distribution(summary):
    figure = plots.exit_distribution(summary)
    axes = figure.axes[0]
    bars = [[bar.get_height() for bar in group] for group in axes.containers]
    np.testing.assert_allclose(bars, [[50, 25], [25, 25], [25, 50]])  # [E, budgets]
    tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
    np.testing.assert_allclose(tops, 100)
    for exit, group in enumerate(axes.containers):
        assert colors.to_hex(group[0].get_facecolor()).upper() == plots.EXITS[exit]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["20", "30"]
    assert axes.get_xlabel() == "Budget: mean FLOPs (multiply-adds), M"
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["patch 2", "look", "glance"]  # as they are stacked
    # E(t): 0.5 + 2 * 0.25 + 3 * 0.25 = 1.75 and 0.25 + 0.5 + 1.5 = 2.25
    assert [text.get_text() for text in axes.texts] == ["1.8", "2.2"]


def test_many_budgets_get_few_labels(summary):
    first = summary.budgeted[0]
    rows = [dataclasses.replace(first, budget=1e9 * (n + 1)) for n in range(39)]
    summary = dataclasses.replace(summary, budgeted=rows)
    axes = plots.exit_distribution(summary).axes[0]
    assert len(axes.get_xticklabels()) == len(axes.texts) <= 12
    assert axes.get_xlabel().endswith(", G")


def test_confidence():
    figure = plots.confidence(
        np.array([0.36, 0.9, 0.97]), fake_results.EXITS, [37e6, 135e6, 172e6], 1
    )
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, [36, 90, 97])
    found = [colors.to_hex(bar.get_facecolor()).upper() for bar in axes.patches]
    assert found == list(plots.EXITS[:3])
    assert [bar.get_alpha() for bar in axes.patches] == [1, 1, 0.3]  # pale after it
    assert [t.get_text() for t in axes.texts] == ["36 %", "90 %\nEXIT", "97 %"]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["glance\n37 M", "look\n135 M", "patch 2\n172 M"]


@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_methods_differ_for_the_colour_blind(lacking):
    """Without one kind of cone, methods that share a figure still differ.

    Matrices of Machado, Oliveira, Fernandes 2009, severity 1: protanopia,
    deuteranopia, tritanopia, for linear RGB.
    """
    cones = [
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    ]
    styles = [*plots.STYLES.values(), *comparison.LOOKS]
    names = {s["color"] for s in styles}
    seen = np.array([colors.to_rgb(c) for c in names]) ** 2.2 @ np.transpose(
        cones[lacking]
    )
    seen = seen.clip(0, 1) ** (1 / 2.2)
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1)
    np.fill_diagonal(apart, 1)
    assert apart.min() > 0.08  # of sqrt(3); markers and lines differ besides


def test_save(summary, tmp_path):
    for name in "ab":
        plots.save(plots.accuracy_exits(summary), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    for name in "ab":
        plots.save(plots.accuracy_exits(summary), tmp_path / name, ["pdf"])
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    for suffix in ("png", "svg", "pdf"):  # the same figure gives the same file
        first, second = (tmp_path / f"{name}.{suffix}" for name in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_save_writes_whole_files_or_none(tmp_path):
    figure = Figure()
    figure.text(0, 0, "$\\nonsense$")  # fails while it is drawn
    with pytest.raises(ValueError):
        plots.save(figure, tmp_path / "broken")
    assert not list(tmp_path.iterdir())


def test_settings_stay_as_they_were(summary, tmp_path):
    before = dict(matplotlib.rcParams)
    plots.save(plots.exit_distribution(summary), tmp_path / "a")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_used():
    code = "import sys; from anchornet_jax.figures import pictures, plots; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "matplotlib.figure" in loaded and "matplotlib.pyplot" not in loaded
