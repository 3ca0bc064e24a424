"""Several evaluations on one page: a figure for each cost, and a table.

page = comparison.write("out", {"AnchorNet": evaluation, "MSDNet": other})
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anchornet_jax.figures import plots, published, report
from anchornet_jax.inference.results import Evaluation
from anchornet_jax.runtime import files

LOOKS = (  # of the runs, one after the other; they repeat after the sixth
    {"color": plots.PALETTE["blue"], "marker": "o"},
    {"color": plots.PALETTE["vermilion"], "marker": "v"},
    {"color": plots.PALETTE["green"], "marker": "P"},
    {"color": plots.PALETTE["purple"], "marker": "X"},
    {"color": plots.PALETTE["orange"], "marker": "^"},
    {"color": plots.PALETTE["black"], "marker": "D"},
)
FIGURES = {"compare_cost": "cost", "compare_time": "time_ms"}


def write(
    directory, found: Mapping[str, Evaluation], others: Sequence[str] = ()
) -> pathlib.Path:
    """Write `compare.html` and its figures, as PNG and SVG.

    Args:
      directory: where they go.
      found: evaluations of the same data, by the name that they get.
      others: data sets, keys of `published.FIGURES`, whose published curves are drawn
        too; those of the runs' own data always are, with the runs among them.

    Returns:
      The path of the page.
    """
    directory = pathlib.Path(directory)
    parts = []
    for name, x in FIGURES.items():
        if any(getattr(p, x) is not None for e in found.values() for p in e.anytime):
            title = f"Accuracy against {'time' if x == 'time_ms' else 'cost'}"
            parts.append(report.part(directory, name, title, "", [draw(found, x)]))
    (first, *_) = found.values()
    own = re.split("[/:]", first.data)[0]
    for data, figures in published.FIGURES.items():
        if data in (own, *others):
            for name, (title, curves) in figures.items():
                drawn = draw(found if data == own else {}, "cost", curves)
                parts.append(report.part(directory, name, title, "", [drawn]))
    page = report.page(
        f"{len(found)} runs on {first.data}",
        finding(found),
        "Solid: each image stops when the method is sure enough. Dotted: all images "
        "leave at the same exit. Rules were fitted on the calibration images.",
        [*parts, table(found)],
    )
    path = directory / "compare.html"
    with files.whole(path, "wb") as file:
        file.write(page.encode())
    return path


@matplotlib.rc_context(plots.RC)
def draw(
    found: Mapping[str, Evaluation],
    x: str = "cost",
    curves: Sequence[published.Curve] = (),
) -> Figure:
    """Draw accuracy against a cost, a key of `plots.COSTS`: two lines for each run.

    Published curves, which have multiply-adds alone, are points beside them.
    """
    figure = Figure((8.2, 4.6) if curves else (7.0, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, (name, one) in enumerate(found.items()):
        look = LOOKS[number % len(LOOKS)]
        for points, style in ((one.budgeted, "-"), (one.anytime, ":")):
            known = sorted(
                (getattr(p, x), 100 * p.accuracy)
                for p in points
                if getattr(p, x) is not None
            )
            if known:
                label = f"{name}, {'budgeted' if style == '-' else 'anytime'}"
                axes.plot(*zip(*known), ms=5, linestyle=style, label=label, **look)
    plots.overlay(axes, curves)
    axes.set(xlabel=plots.COSTS[x], ylabel="Top-1 accuracy (%)")
    if x == "cost":
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep="\u2009"))
    axes.set_xlim(left=0)
    _legend(axes, len(found) + len(curves))
    return figure


def _legend(axes: Axes, runs: int) -> None:
    """Name all lines, outside where they are many; no name is a formula."""
    outside = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    place = {"loc": "best"} if runs < 4 else outside
    # Given one by one: names that begin with an underscore would be left out.
    legend = axes.legend(handles=[*axes.lines], fontsize=8, handlelength=3, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)


def finding(found: Mapping[str, Evaluation]) -> str:
    """Say in a sentence which run is most accurate, and at which cost."""
    best = {
        name: max(one.budgeted or one.anytime, key=lambda p: (p.accuracy, -p.cost))
        for name, one in found.items()
    }
    name, point = max(best.items(), key=lambda pair: pair[1].accuracy)
    return (
        f"{name} is the most accurate at its best: "
        f"{report.accuracy(found[name], point.accuracy)} at "
        f"{report.macs(point.cost)} multiply-adds per image."
    )


def table(found: Mapping[str, Evaluation]) -> str:
    """Return the table of all points as HTML."""
    rows = []
    for name, one in found.items():
        for kind, points in (("budgeted", one.budgeted), ("anytime", one.anytime)):
            for t, point in enumerate(points):
                anytime = kind == "anytime"
                what = f"all leave after {one.exits[t]}" if anytime else kind
                rows.append((name, what, point))
    rows = [
        (
            name,
            what,
            report.accuracy(found[name], point.accuracy),
            report.macs(point.cost),
            report.milliseconds(point.time_ms),
        )
        for name, what, point in rows
    ]
    devices = sorted({one.device for one in found.values() if one.device})
    note = f"Milliseconds on {', '.join(devices)}." if devices else ""
    header = ("run", "rule", "accuracy", "multiply-adds", "ms")
    return report.table("All points", header, rows, note)
