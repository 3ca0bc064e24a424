"""Several evaluations on one page: a figure for each cost, and a table.

Of one evaluation alone its references are drawn as well. Where others have published
results on the same data (`published.on`), these are points with their source; a result
whose cost was not published is a line across the figure.

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
from anchornet_jax.inference.results import Evaluation, Reference
from anchornet_jax.runtime import files

# Of the runs, one after the other; colours repeat after the sixth, all after the twelfth.
COLOURS = ("blue", "vermilion", "green", "purple", "orange", "black")
LOOKS = tuple(
    {"color": plots.PALETTE[colour], "marker": marker}
    for colour, marker in zip(2 * COLOURS, "ovPX^Ds8H123")
)
OTHERS = "hp*d<>"  # markers of published results, which are grey
FIGURES = {  # name: (what is drawn against, as in the title)
    "compare_cost": ("cost", "cost"),
    "compare_time": ("time_ms", "time"),
    "compare_memory": ("peak_bytes", "memory"),
}
LABELS = plots.COSTS | {"peak_bytes": plots.MEMORY}


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
    (first, *_) = found.values()
    results = published.on(first.data)
    for name, (x, word) in FIGURES.items():
        if any(points for _, points, _ in _lines(found, x)):
            title = f"Accuracy against {word}"
            said = _said(results, x)
            parts.append(report.part(directory, name, title, said, [draw(found, x)]))
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
    """Draw accuracy against a key of `LABELS`: two lines for each run.

    Beside them stand what was published on the same data, and published curves.
    """
    figure = Figure((8.2, 4.6) if curves else (7.0, 4.4), layout="constrained")
    axes = figure.subplots()
    for label, points, look in _lines(found, x):
        if points:
            axes.plot(*zip(*points), ms=5, label=label, **look)
    for data in {one.data for one in found.values()}:
        _published(axes, published.on(data), x)
    plots.overlay(axes, curves)
    axes.set(xlabel=LABELS[x], ylabel="Top-1 accuracy (%)")
    if x != "time_ms":
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep="\u2009"))
    axes.set_xlim(left=0)
    _legend(axes, len(axes.lines))
    return figure


def _lines(found: Mapping[str, Evaluation], x: str) -> list[tuple[str, list, dict]]:
    """Return name, points (x, percent) and look of every line that can be drawn."""
    lines = []
    for number, (name, one) in enumerate(found.items()):
        look = LOOKS[number % len(LOOKS)]
        for kind, style in (("budgeted", "-"), ("anytime", ":")):
            points = _points(one, getattr(one, kind), x)
            lines.append((f"{name}, {kind}", points, look | {"linestyle": style}))
    for look, (name, other) in zip(LOOKS[1:], _references(found).items()):
        points = _points(other, other.anytime, x)
        lines.append((name, points, look | {"linestyle": ":"}))
    return lines


def _points(one: Evaluation | Reference, points, x: str) -> list[tuple[float, float]]:
    """Return (x, percent), cheapest first; memory is that of running all steps."""
    if x == "peak_bytes":
        last = one.anytime[-1:] if points is one.anytime else []
        return [(one.peak_bytes, 100 * p.accuracy) for p in last if one.peak_bytes]
    return sorted(
        (getattr(p, x), 100 * p.accuracy) for p in points if getattr(p, x) is not None
    )


def _published(axes: Axes, others, x: str) -> None:
    """Draw what others published, across the figure where this cost is not known."""
    for marker, other in zip(OTHERS, others):
        look = {"color": "#666666", "label": f"{other.method}, published"}
        if getattr(other, x) is None:
            axes.axhline(other.accuracy, lw=1, ls=(0, (1, 3)), **look)
        else:
            point = [getattr(other, x)], [other.accuracy]
            axes.plot(*point, marker=marker, ms=7, ls="none", **look)


def _said(others, x: str) -> str:
    """Say where published results come from, and whether their cost is known."""
    known = {True: "", False: "; this cost was not published"}
    return " ".join(
        f"{o.method}: {o.setting} ({o.source}){known[getattr(o, x) is not None]}."
        for o in others
    )


def _legend(axes: Axes, lines: int) -> None:
    """Name all lines, outside where they are many; no name is a formula."""
    outside = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    place = {"loc": "best"} if lines < 8 else outside
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
    """Return the table of all points as HTML, of published results too."""
    (first, *_) = found.values()
    rows = []  # (run, rule, accuracy, multiply-adds, ms, memory)
    for name, one in found.items():
        for point in one.budgeted:
            rows.append(_row(one, name, "budgeted", point))
        for run, other in ((name, one), *_references(found).items()):
            for exit, point in zip(other.exits, other.anytime):
                rows.append(_row(one, run, f"all leave after {exit}", point, other))
    for other in published.on(first.data):
        cost = "–" if other.cost is None else report.macs(other.cost)
        about = cost, report.milliseconds(other.time_ms), _megabytes(other.peak_bytes)
        rows.append((other.method, "published", f"{other.accuracy:.1f}\u00a0%", *about))
    devices = sorted({one.device for one in found.values() if one.device})
    note = f"Milliseconds on {', '.join(devices)}." if devices else ""
    header = ["run", "rule", "accuracy", "multiply-adds", "ms", "memory"]
    if all(row[-1] == "–" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return report.table("All points", header, rows, note)


def _references(found: Mapping[str, Evaluation]) -> dict[str, Reference]:
    """Return the references of one evaluation alone."""
    return next(iter(found.values())).references if len(found) == 1 else {}


def _row(one, name, rule, point, of=None) -> tuple[str, ...]:
    """Return a row of the table; `of` is what needs the memory, the last step most."""
    last = of is not None and point is of.anytime[-1]
    return (
        name,
        rule,
        report.accuracy(one, point.accuracy),
        report.macs(point.cost),
        report.milliseconds(point.time_ms),
        _megabytes(of.peak_bytes if last else None),
    )


def _megabytes(count: float | None) -> str:
    """Write bytes as MB, a dash where they are not known."""
    return "–" if count is None else f"{count / 1e6:,.0f}\u00a0MB"
