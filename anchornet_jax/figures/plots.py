"""Figures of what accuracy costs, and the look that all figures share.

An evaluation in, a `matplotlib.figure.Figure` out; no display and no pyplot. A
method and an exit have the same colour in every figure, and a marker, a line style or
a symbol besides: the figures are for printers and colour-blind eyes as well.
`pictures` draws the images.

    figure = plots.accuracy_cost(results.read("out"))
    plots.save(figure, "out/accuracy_cost")  # out/accuracy_cost.png and .svg

Figures 5 to 7 of Localizing Semantic Patches (2022) show the same relations.
"""

import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import patheffects, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anchornet_jax.figures.published import Curve
from anchornet_jax.inference.results import Evaluation
from anchornet_jax.runtime import files

PALETTE = {  # Okabe and Ito's (Color Universal Design, 2008)
    "blue": "#0072B2",
    "sky": "#56B4E9",
    "orange": "#E69F00",
    "black": "#000000",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
}
STYLES = {
    "budgeted": {"color": PALETTE["blue"], "marker": "o", "linestyle": "-"},
    "anytime": {"color": PALETTE["sky"], "marker": "s", "linestyle": "--"},
    "reference": {"color": PALETTE["orange"], "marker": "^", "linestyle": ":"},
    "single": {"color": PALETTE["black"], "marker": "*", "linestyle": "none"},
    "AnchorNet": {"color": PALETTE["blue"], "marker": "D", "linestyle": "none"},
    "GFNet": {"color": PALETTE["vermilion"], "marker": "v", "linestyle": "none"},
    "MSDNet": {"color": PALETTE["green"], "marker": "P", "linestyle": "none"},
    "RANet": {"color": PALETTE["purple"], "marker": "X", "linestyle": "none"},
    "static networks": {"color": "#666666", "marker": "h", "linestyle": "none"},
}
# Light to dark, so that the order of the exits shows in grey too. RANet has most: 8.
EXITS = (
    *("#FDE725", "#A0DA39", "#4AC16D", "#1FA187"),
    *("#277F8E", "#365C8D", "#46327E", "#440154"),
)
RARE = 0.005  # of the images; what fewer say by chance is not drawn
MARKERS = "osD^vPXh"  # of exits, where their order alone does not tell them apart
VERDICTS = {  # right or wrong
    True: ("✓", PALETTE["green"]),
    False: ("✗", PALETTE["vermilion"]),
}
COSTS = {"cost": "FLOPs (multiply-adds)", "time_ms": "Time per image (ms)"}
MEMORY = "Device memory of the largest launch (bytes)"
DPI = 200  # of pixels; lines and letters are vectors in svg and pdf
# Without dates and versions the same figure gives the same file.
METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.hashsalt": "anchornet_jax",  # of the names inside the file
    "pdf.fonttype": 42,  # letters stay text, as journals ask
}


# Of several references, by the number of their exits: the first has the look of STYLES.
MORE = (
    {},
    {"color": PALETTE["vermilion"], "marker": "D"},
    {"color": PALETTE["green"], "marker": "v"},
    {"color": PALETTE["purple"], "marker": "P"},
)


@matplotlib.rc_context(RC)
def accuracy_cost(
    summary: Evaluation, *, x: str = "cost", published: Sequence[Curve] = ()
) -> Figure:
    """Draw accuracy against mean cost: budgeted, anytime and the references.

    Args:
      summary: of an evaluation.
      x: a key of `COSTS`, an attribute of the points; those without it are left out.
      published: ImageNet curves to be drawn as points that carry their source.

    Raises:
      ValueError: for an unknown `x`, one that no point has, or published multiply-adds
        beside another cost.
    """
    if x not in COSTS:
        raise ValueError(f"`x` is {x!r}; choose one of {sorted(COSTS)}")
    if published and x != "cost":
        raise ValueError(f"`x` is {x!r}; `published` points have multiply-adds only")
    figure = Figure((8.2, 4.6) if published else (5.6, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=COSTS[x], ylabel="Top-1 accuracy (%)")
    if x == "cost":
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep="\u2009"))
    series = [
        ("early exit, budgeted", STYLES["budgeted"], summary.budgeted),
        ("same exit for all, anytime", STYLES["anytime"], summary.anytime),
        *((name, look, points) for name, look, points in _references(summary)),
    ]
    for name, look, points in series:
        found = sorted(
            (getattr(p, x), 100 * p.accuracy)
            for p in points
            if getattr(p, x) is not None
        )
        if found:
            _line(axes, found, name, look, zorder=3 + (points is summary.budgeted))
    if not axes.lines:
        raise ValueError(f"`x` is {x!r}, which no point of `summary` has")
    _level(axes, summary)
    for t, point in enumerate(summary.anytime, 1):
        if getattr(point, x) is not None:
            _note(axes, str(t), (getattr(point, x), 100 * point.accuracy), (5, -10))
    overlay(axes, published)
    axes.set_xlim(left=0)
    axes.margins(y=0.08)
    if published:
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7.5)
    else:
        axes.legend(loc="best")
    return figure


def _references(summary: Evaluation) -> list[tuple]:
    """Return name, look and points of each reference."""
    found, seen = [], {"single": 0, "reference": 0}
    for name, reference in summary.references.items():
        kind = "single" if len(reference.anytime) == 1 else "reference"
        look = STYLES[kind] | MORE[seen[kind] % len(MORE)]
        found.append((name, look, reference.anytime))
        seen[kind] += 1
    return found


def _line(axes: Axes, points, label: str, look: Mapping, **kwargs) -> None:
    size = 11 if look["marker"] == "*" else 5
    axes.plot(*zip(*points), label=label, ms=size, **look, **kwargs)


def _level(axes: Axes, summary: Evaluation, **kwargs) -> None:
    """Draw the accuracy of the best reference with one exit, if any, as a level."""
    if found := summary.reference():
        look = {"color": STYLES["single"]["color"], "lw": 0.8, "ls": (0, (2, 3))}
        look["zorder"] = 1  # under the notes
        axes.axhline(100 * found[1].accuracy, **look, **kwargs)


def _note(axes: Axes, text: str, point, offset, ha="left") -> None:
    axes.annotate(
        text,
        point,
        offset,
        textcoords="offset points",
        ha=ha,
        fontsize=7,
        color="#444444",
        zorder=1.5,  # markers stay whole
        path_effects=[patheffects.withStroke(linewidth=2, foreground="w")],
    )


def overlay(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw published points; a system's second curve is hollow, its third half filled."""
    drawn: dict[str, int] = {}
    for curve in curves:
        fill = ("full", "none", "left")[drawn.get(curve.method, 0) % 3]
        drawn[curve.method] = drawn.get(curve.method, 0) + 1
        points = [(1e9 * macs, accuracy) for macs, accuracy in curve.points]
        name = ", ".join(filter(None, (curve.method, curve.network)))
        label = f"{name}\n({curve.source})"
        _line(axes, points, label, STYLES[curve.method], fillstyle=fill)
        for n, (text, (macs, accuracy)) in enumerate(zip(curve.names, points)):
            # Neighbours alternate between below and above, and the last stay inside.
            right = macs > 0.8 * points[-1][0]
            offset = (-5 if right else 5, 4 if n % 2 else -9)
            _note(axes, text, (macs, accuracy), offset, "right" if right else "left")


@matplotlib.rc_context(RC)
def accuracy_exits(summary: Evaluation) -> Figure:
    """Draw accuracy against the exit at which all images leave (2022, Table 3).

    Beside the method stand the references with as many exits.

    Args:
      summary: of an evaluation.
    """
    figure = Figure((5.6, 3.7), layout="constrained")
    axes = figure.subplots()
    series = [(summary.method["name"], STYLES["anytime"], summary.anytime)]
    series += _references(summary)
    for name, look, points in series:
        if len(points) == len(summary.exits):
            _line(
                axes,
                [(t, 100 * point.accuracy) for t, point in enumerate(points)],
                name,
                look,
            )
    found = summary.reference()
    _level(axes, summary, label=found and found[0])
    axes.set_xticks(range(len(summary.exits)), summary.exits)
    axes.set(xlabel="All images leave after", ylabel="Top-1 accuracy (%)")
    axes.legend(loc="best")
    return figure


@matplotlib.rc_context(RC)
def reliability(summary: Evaluation) -> Figure:
    """Draw how often answers are right against how sure they are, a line per exit.

    Bins of few images are left out; their calibration error counts all the same.

    Args:
      summary: of an evaluation that has its `reliability`.
    """
    figure = Figure((5.6, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="#666666", linestyle=":", label="a probability")
    for exit, found in enumerate(summary.reliability):
        many = np.array(found.share) >= RARE
        axes.plot(
            100 * np.array(found.confidence)[many],
            100 * np.array(found.accuracy)[many],
            color=exit_color(exit),
            marker=MARKERS[exit % len(MARKERS)],
            label=f"{summary.exits[exit]}: {found.error:.3f}",
        )
    axes.set(xlabel="Confidence (%)", ylabel="Of these right (%)")
    axes.legend(
        title="leaves after:\ncalibration error",
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    return figure


def exit_color(exit: int) -> str:
    """Return the colour of an exit, counted from 0; they repeat after the eighth."""
    return EXITS[exit % len(EXITS)]


@matplotlib.rc_context(RC)
def exit_distribution(summary: Evaluation) -> Figure:
    """Draw which share of the images leaves at each exit, a bar per budget.

    Args:
      summary: of an evaluation; E(t) of the paper stands above the bars.
    """
    rows = sorted(summary.budgeted, key=lambda row: row.budget)
    shares = 100 * np.array([row.exits for row in rows])  # [budgets, E]
    figure = Figure((5.6, 3.7), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    for exit, share in enumerate(shares.T):
        axes.bar(
            places,
            share,
            width=0.82,
            bottom=shares[:, :exit].sum(1),
            color=exit_color(exit),
            edgecolor="white",
            linewidth=0.8,
            label=summary.exits[exit],
        )
    unit, letter = (1e9, "G") if rows[-1].budget >= 1e9 else (1e6, "M")
    step = -(-len(rows) // 12)  # room for a dozen labels
    labels = [f"{row.budget / unit:.3g}" for row in rows[::step]]
    axes.set_xticks(places[::step], labels)
    for place, row in zip(places[::step], rows[::step]):
        text = f"{row.steps:.1f}"
        axes.text(place, 101, text, ha="center", va="bottom", fontsize=7)
    axes.set_xlabel(f"Budget: mean FLOPs (multiply-adds), {letter}")
    axes.set_ylabel("Images (%)")
    axes.set_ylim(0, 100)
    axes.grid(False)
    axes.set_title("mean number of steps E(t)", fontsize=7.5, pad=16)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        names[::-1],
        title="leaves after",
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    return figure


@matplotlib.rc_context(RC)
def confidence(
    values: np.ndarray, names: Sequence[str], macs: Sequence[float], exit: int
) -> Figure:
    """Draw how sure a method is of one image after each step.

    Args:
      values: [E] confidence at each exit, 0 to 1.
      names: [E] of the exits.
      macs: [E] multiply-adds up to there.
      exit: where the image leaves, 0-based; what comes later is pale.
    """
    figure = Figure((5.6, 2.8), layout="constrained")
    axes = figure.subplots()
    for t, value in enumerate(100 * np.asarray(values)):
        needed = t <= exit
        axes.bar(
            t,
            value,
            width=0.7,
            color=exit_color(t),
            alpha=1 if needed else 0.3,
            edgecolor="k" if t == exit else "none",
            linewidth=2,
        )
        text = f"{value:.0f} %" + "\nEXIT" * (t == exit)
        weight = "bold" if t == exit else "normal"
        axes.text(t, value + 2, text, ha="center", fontsize=8, fontweight=weight)
    labels = [f"{name}\n{m / 1e6:.0f} M" for name, m in zip(names, macs)]
    axes.set_xticks(range(len(values)), labels)
    axes.set(ylim=(0, 122), yticks=range(0, 101, 25), ylabel="Confidence (%)")
    axes.set_xlabel("Steps, and FLOPs (multiply-adds) up to there")
    axes.grid(False, axis="x")
    return figure


def save(
    figure: Figure, path: str | os.PathLike, formats: Sequence[str] = ("png", "svg")
) -> None:
    """Write a figure as `path`.png, `path`.svg, …, each whole or not at all.

    Args:
      figure: from this module or `pictures`.
      path: without a suffix.
      formats: of `METADATA`.
    """
    for suffix in formats:
        with files.whole(f"{path}.{suffix}", "wb") as file, matplotlib.rc_context(RC):
            figure.savefig(file, format=suffix, dpi=DPI, metadata=METADATA[suffix])
