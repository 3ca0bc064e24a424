"""Figures: where the networks looked, and what accuracy costs.

Arrays and dicts in, a `matplotlib.figure.Figure` out; no display and no pyplot. A
method and an exit have the same colour in every figure, and a marker, a line style or
a symbol besides: the figures are for printers and colour-blind eyes as well.

    figure = plots.accuracy_cost(summary)
    plots.save(figure, "out/accuracy_cost")  # out/accuracy_cost.png and .svg

Figures 5 to 7 of Localizing Semantic Patches (2022) show the same relations.
"""

import io
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import colors, patheffects, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from anchornet_jax import patches
from anchornet_jax.published import Curve

# Okabe and Ito's palette (Color Universal Design, 2008).
STYLES = {
    "budgeted": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "anytime": {"color": "#56B4E9", "marker": "s", "linestyle": "--"},
    "random": {"color": "#E69F00", "marker": "^", "linestyle": ":"},
    "full image": {"color": "#000000", "marker": "*", "linestyle": "none"},
    "AnchorNet": {"color": "#0072B2", "marker": "D", "linestyle": "none"},
    "GFNet": {"color": "#D55E00", "marker": "v", "linestyle": "none"},
    "MSDNet": {"color": "#009E73", "marker": "P", "linestyle": "none"},
    "RANet": {"color": "#CC79A7", "marker": "X", "linestyle": "none"},
    "static networks": {"color": "#666666", "marker": "h", "linestyle": "none"},
}
# Light to dark, so that the order of the exits shows in grey too. RANet has most: 8.
EXITS = (
    *("#FDE725", "#A0DA39", "#4AC16D", "#1FA187"),
    *("#277F8E", "#365C8D", "#46327E", "#440154"),
)
VERDICTS = {True: ("✓", "#009E73"), False: ("✗", "#D55E00")}
HEAT = colors.LinearSegmentedColormap.from_list(
    "heat", [(1, 1, 1, 0), (0.9, 0.6, 0, 0.55), (0.84, 0.2, 0, 0.8)]
)
COSTS = {"macs": "FLOPs (multiply-adds)", "time_ms": "Time per image (ms)"}
RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "anchornet_jax",  # the same figure gives the same file
}
# Inches, of the figure of examples.
PICTURE, INPUT, GAP, CAPTION, HEADER, MARGIN = 1.55, 0.95, 0.16, 0.36, 0.72, 0.3


@matplotlib.rc_context(RC)
def accuracy_cost(
    summary: Mapping, *, x: str = "macs", published: Sequence[Curve] = ()
) -> Figure:
    """Draw accuracy against mean cost: budgeted, anytime and the full-image network.

    Args:
      summary: `budgeted` rows with `mean_macs` and `accuracy`, `anytime` rows with
        `macs`, `accuracy` and `inputs`, `full_image` with `macs` and `accuracy`, 0 to 1.
      x: a key of `COSTS`, read where those say `macs`; rows without it are left out.
      published: ImageNet curves to be drawn as points that carry their source.

    Raises:
      ValueError: for an unknown `x`, one that no row has, or published multiply-adds
        beside another cost.
    """
    if x not in COSTS:
        raise ValueError(f"`x` is {x!r}; choose one of {sorted(COSTS)}")
    if published and x != "macs":
        raise ValueError(f"`x` is {x!r}; `published` points have multiply-adds only")
    series = {
        "budgeted": ("early exit, budgeted", f"mean_{x}", summary["budgeted"]),
        "anytime": ("same number of inputs, anytime", x, summary["anytime"]),
        "full image": ("full-image network", x, [summary["full_image"]]),
    }
    series = {n: (l, k, [r for r in rs if k in r]) for n, (l, k, rs) in series.items()}
    if not any(rows for _, _, rows in series.values()):
        raise ValueError(f"`x` is {x!r}, which no row of `summary` has")

    figure = Figure((8.2, 4.6) if published else (5.6, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=COSTS[x], ylabel="Top-1 accuracy (%)")
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep="\u2009"))
    for name, (label, key, rows) in series.items():
        points = sorted((row[key], 100 * row["accuracy"]) for row in rows)
        if points:
            _line(axes, points, label, name, zorder=3 + (name == "budgeted"))
    axes.axhline(
        100 * summary["full_image"]["accuracy"], color="#000000", lw=0.8, ls=(0, (2, 3))
    )
    for row in series["anytime"][2]:
        _note(axes, str(row["inputs"]), (row[x], 100 * row["accuracy"]), (5, -10))
    _overlay(axes, published)
    axes.set_xlim(left=0)
    if published:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7.5)
    else:
        axes.legend(loc="lower right")
    return figure


def _line(axes: Axes, points, label: str, style: str, **kwargs) -> None:
    size = 11 if style == "full image" else 5
    axes.plot(*zip(*points), label=label, ms=size, **STYLES[style], **kwargs)


def _note(axes: Axes, text: str, point, offset) -> None:
    axes.annotate(
        text, point, offset, textcoords="offset points", fontsize=7, color="#444444"
    )


def _overlay(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw published points; a system's second curve is hollow, its third half filled."""
    drawn: dict[str, int] = {}
    for curve in curves:
        fill = ("full", "none", "left")[drawn.get(curve.method, 0) % 3]
        drawn[curve.method] = drawn.get(curve.method, 0) + 1
        points = [(1e9 * macs, accuracy) for macs, accuracy in curve.points]
        name = " ".join(filter(None, (curve.method, curve.network)))
        label = f"{name}\n({curve.source})"
        _line(axes, points, label, curve.method, fillstyle=fill)
        for text, point in zip(curve.names, points):
            _note(axes, text, point, (4, 4))


@matplotlib.rc_context(RC)
def accuracy_inputs(summary: Mapping) -> Figure:
    """Draw accuracy against the number of inputs (2022, Table 3).

    Args:
      summary: `anytime` rows with `inputs`, `accuracy` and `random_patches_accuracy`,
        and the `accuracy` of `full_image`, 0 to 1.
    """
    figure = Figure((5.6, 3.7), layout="constrained")
    axes = figure.subplots()
    rows = summary["anytime"]
    for style, label, key in (
        ("anytime", "AnchorNet's patches", "accuracy"),
        ("random", "random patches", "random_patches_accuracy"),
    ):
        points = [(row["inputs"], 100 * row[key]) for row in rows]
        _line(axes, points, label, style)
    full = 100 * summary["full_image"]["accuracy"]
    axes.axhline(full, color="#000000", lw=0.8, ls=(0, (2, 3)), label="full image")
    axes.set(xlabel="Inputs: the glance, then patches", ylabel="Top-1 accuracy (%)")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.legend(loc="lower right")
    return figure


def _exit_name(exit: int) -> str:
    return "glance" if exit == 0 else f"{exit} patch" + "es" * (exit > 1)


@matplotlib.rc_context(RC)
def exit_distribution(budgeted: Sequence[Mapping]) -> Figure:
    """Draw which share of the images leaves at each exit, a bar per budget.

    Args:
      budgeted: rows with `budget_macs`, `exits` ([E] shares that sum to 1) and
        `expected_inputs`, E(t) of the paper, which stands above the bar.
    """
    rows = sorted(budgeted, key=lambda row: row["budget_macs"])
    shares = 100 * np.array([row["exits"] for row in rows])  # [budgets, E]
    figure = Figure((5.6, 3.7), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    for exit, share in enumerate(shares.T):
        axes.bar(
            places,
            share,
            width=0.82,
            bottom=shares[:, :exit].sum(1),
            color=EXITS[exit % len(EXITS)],
            edgecolor="white",
            linewidth=0.8,
            label=_exit_name(exit),
        )
    for place, row in zip(places, rows):
        text = f"{row['expected_inputs']:.1f}"
        axes.text(place, 101, text, ha="center", va="bottom", fontsize=7.5)
    engineering = ticker.EngFormatter(sep="\u2009")
    step = -(-len(rows) // 10)
    labels = [engineering(row["budget_macs"]) for row in rows[::step]]
    axes.set_xticks(places[::step], labels)
    axes.set(xlabel="Budget: mean FLOPs (multiply-adds)", ylabel="Images (%)")
    axes.set_ylim(0, 100)
    axes.grid(False)
    axes.set_title("mean number of inputs E(t)", fontsize=7.5, pad=16)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        names[::-1],
        title="leaves after",
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    return figure


def stride(height: int, width: int, patch: int, heatmap, corners) -> int:
    """Return the stride S in px that relates a heatmap to its image.

    Args:
      height: of the image, in px.
      width: of the image, in px.
      patch: its side P, in px.
      heatmap: [..., G, G].
      corners: [..., 2] int; they lie on the lattice, which decides where the sizes of
        small grids allow more than one stride.

    Raises:
      ValueError: if no stride fits.
    """
    grid = heatmap.shape[-2:]
    for step in range(max(height, width) - patch + 1, 0, -1):
        lattice = ((height - patch) // step + 1, (width - patch) // step + 1)
        if lattice == grid and not np.any(corners % step):
            return step
    raise ValueError(
        f"`heatmap` has {grid[0]}x{grid[1]} locations; no stride maps them to the "
        f"`corners` of {patch}-px patches in {height}x{width}-px images"
    )


@matplotlib.rc_context(RC)
def examples(arrays: Mapping[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Draw where the networks looked and what they said, one row per image.

    Left the image in grey under its heatmap, with the patches: solid where they were
    looked at before the exit, dashed where they were not needed. Right the inputs.

    Args:
      arrays: image uint8 [B, H, W, 3], heatmap [B, G, G], corners int [B, K, 2] (y, x),
        valid bool [B, K], label [B], predicted [B, E] and confidence [B, E] after each
        input, exit [B] (0-based), patch_size P, and, if known, the object's box [B, 4]
        as (top, left, bottom, right), all in px.
      classes: their names.

    Raises:
      ValueError: if heatmap and corners fit no stride.
    """
    images = np.asarray(arrays["image"])
    b, height, width = images.shape[:3]
    inputs = arrays["predicted"].shape[1]
    size = int(arrays["patch_size"])
    valid, corners = np.asarray(arrays["valid"]), np.asarray(arrays["corners"])
    step = stride(height, width, size, arrays["heatmap"], corners[valid])
    glances = np.asarray(patches.resize(images.astype(np.float32), size))
    glances = glances.clip(0, 255).astype(np.uint8)

    row_height = PICTURE + GAP
    inches = (
        MARGIN + PICTURE + inputs * (INPUT + GAP) + GAP / 2,
        HEADER + b * row_height,
    )
    figure = Figure(inches)
    for i in range(b):
        row = {k: np.asarray(v)[i] for k, v in arrays.items() if np.ndim(v)}
        top = HEADER + i * row_height
        axes = _place(figure, MARGIN, top, PICTURE)
        _picture(axes, row, size, step)
        axes.set_ylabel(f"true: {_short(classes[row['label']], 20)}", parse_math=False)
        for t in range(inputs):
            left = MARGIN + PICTURE + GAP + t * (INPUT + GAP)
            axes = _place(figure, left, top + (PICTURE - INPUT - CAPTION) / 2, INPUT)
            pixels = glances[i] if t == 0 else _crop(row, t - 1, size)
            _input(axes, pixels, row, t, classes)
            if i == 0:
                name = "glance" if t == 0 else f"patch {t}"
                axes.set_title(name, fontsize=8, pad=5)
    _legend(figure, "box" in arrays)
    return figure


def _place(figure: Figure, left: float, top: float, side: float) -> Axes:
    """Add square axes without ticks, in inches from the upper left corner."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / width, 1 - (top + side) / height, side / width, side / height)
    )
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return axes


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _crop(row: Mapping, k: int, size: int) -> np.ndarray | None:
    """Return the pixels [P, P, 3] of a patch, None if there is no such patch."""
    if not row["valid"][k]:
        return None
    y, x = row["corners"][k]
    return row["image"][y : y + size, x : x + size]


def _picture(axes: Axes, row: Mapping, size: int, step: int) -> None:
    height, width = row["image"].shape[:2]
    grey = row["image"] @ np.array([0.299, 0.587, 0.114])
    axes.imshow(grey, cmap="gray", vmin=-120, vmax=255, extent=(0, width, height, 0))
    # Location (i, j) stands for the patch whose centre is i S + P / 2, so the map ends
    # half a patch before the image does.
    first = (size - step) / 2
    rows, columns = (first + n * step for n in row["heatmap"].shape)
    axes.imshow(
        row["heatmap"],
        cmap=HEAT,
        interpolation="bilinear",
        extent=(first, columns, rows, first),
    )
    axes.set(xlim=(0, width), ylim=(height, 0))
    if "box" in row:
        top, left, bottom, right = row["box"]
        _rectangle(axes, top, left, bottom - top, right - left, "white", ":", 1)
    for k in reversed(np.flatnonzero(row["valid"])):
        _patch(axes, *row["corners"][k], size, k, seen=k < row["exit"])


def _patch(axes: Axes, y, x, size: int, k: int, *, seen: bool) -> None:
    color = EXITS[(k + 1) % len(EXITS)]
    alpha = 1 if seen else 0.6
    _rectangle(axes, y, x, size, size, color, "-" if seen else "--", 1.6, alpha=alpha)
    axes.text(
        x + 4,
        y + 4,
        str(k + 1),
        ha="left",
        va="top",
        fontsize=7,
        fontweight="bold",
        color=_ink(color),
        alpha=alpha,
        bbox={"facecolor": color, "edgecolor": "none", "pad": 1.2, "alpha": alpha},
    )


def _rectangle(axes: Axes, y, x, height, width, color, style, lw, **kwargs) -> None:
    shape = Rectangle(
        (x, y), width, height, fill=False, ec=color, ls=style, lw=lw, **kwargs
    )
    # A dark casing: the line shows on any pixels.
    shape.set_path_effects([patheffects.withStroke(linewidth=lw + 1.2, foreground="k")])
    axes.add_patch(shape)


def _ink(background: str) -> str:
    """Return the colour of text that is readable on that background."""
    return "k" if np.dot(colors.to_rgb(background), (0.3, 0.6, 0.1)) > 0.5 else "w"


def _input(axes: Axes, pixels, row: Mapping, t: int, classes: Sequence[str]) -> None:
    """Draw one input, and under it what is predicted after it."""
    needed = t <= row["exit"]
    if pixels is not None:
        axes.imshow(pixels, alpha=1 if needed else 0.3)
    symbol, color = VERDICTS[bool(row["predicted"][t] == row["label"])]
    name = _short(classes[row["predicted"][t]], 14)
    axes.set_xlabel(
        f"{symbol} {name}\n{row['confidence'][t]:.0%}",
        parse_math=False,
        color=color if needed else "#999999",
        fontsize=8,
        fontweight="bold" if t == row["exit"] else "normal",
        labelpad=3,
    )
    axes.spines[:].set(visible=True, color="#999999", linestyle="-" if needed else "--")
    if t == row["exit"]:
        color = EXITS[t % len(EXITS)]
        axes.spines[:].set(color=color, linewidth=3)
        axes.text(
            0.5,
            1,
            "EXIT",
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=6.5,
            fontweight="bold",
            color=_ink(color),
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
        )


def _legend(figure: Figure, boxes: bool) -> None:
    handles = [
        Patch(facecolor=HEAT(0.95), label="heatmap: evidence for AnchorNet's class"),
        Patch(fill=False, ec="k", lw=1.6, label="patch looked at"),
        Patch(fill=False, ec="k", ls="--", label="patch not needed"),
    ]
    if boxes:
        handles.append(
            Patch(fill=False, ec="k", ls=":", label="object, for scoring only")
        )
    for right, (symbol, color) in VERDICTS.items():
        label = "right" if right else "wrong"
        handles.append(
            Line2D([], [], ls="none", marker=f"${symbol}$", color=color, label=label)
        )
    figure.legend(handles=handles, loc="upper left", ncols=len(handles), fontsize=8)


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Write a file whole or not at all."""
    path = pathlib.Path(path)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as `path`.png (200 dpi) and `path`.svg, each whole or not at all."""
    files = {}
    with matplotlib.rc_context(RC):
        for suffix, options in {
            "png": {"dpi": 200},
            "svg": {"dpi": 200, "metadata": {"Date": None}},
        }.items():
            file = io.BytesIO()
            figure.savefig(file, format=suffix, **options)
            files[suffix] = file.getvalue()
    for suffix, data in files.items():
        write_whole(f"{path}.{suffix}", data)
