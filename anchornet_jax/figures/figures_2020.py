"""The figures of the analyses of 2020: curves of area, and pictures of the branches.

    for name, figure in figures_2020.figures(arrays, summary, classes).items():
        plots.save(figure, directory / name)

Figures 3 to 6 of Localizing Multi-scale Semantic Patches (2020).
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from anchornet_jax.figures import plots

LOCALIZERS = {  # name: look in Figure 6
    "anchornet_2020": plots.STYLES["budgeted"],
    "anchornet_2022": plots.STYLES["anytime"],
    "bagnet": {"color": plots.PALETTE["purple"], "marker": "X", "linestyle": "-."},
    "saccader": {"color": plots.PALETTE["black"], "marker": "P", "linestyle": "--"},
    "random": plots.STYLES["reference"],
    "centre": {"color": plots.PALETTE["green"], "marker": "s", "linestyle": "--"},
    "edges": {"color": plots.PALETTE["vermilion"], "marker": "v", "linestyle": "-."},
}
LABELS = {
    "anchornet_2020": "AnchorNet, 2020",
    "anchornet_2022": "AnchorNet, 2022",
    "bagnet": "BagNet",
    "saccader": "Saccader",
    "edges": "edge energy (Sobel)",
    "centre": "centre patch",
}
COLUMNS = 6  # images of a row
SIDE = 1.35  # inches, of a picture


def figures(arrays: Mapping, summary: Mapping, classes: Sequence[str]) -> dict:
    """Return {file name: figure}.

    Args:
      arrays: of `analyses.make_step`, with `image` uint8 [B, H, W, 3] and `label` [B].
      summary: of `analyses.analyses`.
      classes: names.
    """
    sizes = [int(size) for size in summary["table_4"]]
    return {
        "figure_3_patches": branch_patches(arrays, sizes, classes),
        "figure_4_confused": confused(arrays, sizes, classes),
        "figure_5_attention": attention(arrays, sizes),
        "figure_6_area": area(summary["figure_6"]),
    }


@matplotlib.rc_context(plots.RC)
def area(rows: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Draw accuracy against the area covered, and masked (2020, Fig. 6).

    Args:
      rows: `figure_6` of the summary.
    """
    figure = Figure((8.0, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = {
        "covered": "Only the patches are left",
        "masked": "The patches are masked",
    }
    for axis, (key, title) in zip(axes, titles.items()):
        for name, look in LOCALIZERS.items():
            points = [(100 * r["area"], 100 * r[key]) for r in rows.get(name, ())]
            if not points:
                continue  # was not compared
            axis.plot(*zip(*points), label=LABELS.get(name, name), ms=5, **look)
        axis.set(title=title, xlabel=f"Area {key} (%)", ylabel="Top-1 accuracy (%)")
        axis.set_xlim(left=0)
        axis.set_ylim(0, 100)
    axes[0].legend(loc="best")
    return figure


@matplotlib.rc_context(plots.RC)
def branch_patches(arrays: Mapping, sizes: Sequence[int], classes) -> Figure:
    """Draw images of each branch with their patches, a row per branch (2020, Fig. 3)."""
    figure, grid = _grid(len(sizes), COLUMNS)
    for j, size in enumerate(sizes):
        own = np.flatnonzero(arrays["branch"] == j)[:COLUMNS]
        _label(grid[j][0], f"B{size}")
        for axis, i in zip(grid[j], own):
            axis.imshow(arrays["image"][i])
            for k in np.flatnonzero(arrays["valid"][i]):
                _square(
                    axis, arrays["corners"][i, k], size, plots.exit_color(2 * k + 1)
                )
            axis.set_xlabel(classes[arrays["label"][i]], parse_math=False)
    return figure


@matplotlib.rc_context(plots.RC)
def attention(arrays: Mapping, sizes: Sequence[int]) -> Figure:
    """Draw the branches' spatial attention side by side, a row per image (2020, Fig. 5)."""
    figure, grid = _grid(4, 1 + len(sizes))
    for row, i in zip(grid, np.linspace(0, len(arrays["image"]) - 1, 4).astype(int)):
        row[0].imshow(arrays["image"][i])
        for axis, size, j in zip(row[1:], sizes, range(len(sizes))):
            _attention(axis, arrays["image"][i], arrays["attention"][i, j], size)
    for axis, title in zip(grid[0], ["image", *(f"B{size}" for size in sizes)]):
        axis.set_title(title)
    return figure


def _attention(axis: Axes, image, heatmap, size: int) -> None:
    """Lay a map over a grey image; a location stands for the centre of its patch."""
    axis.imshow(image.mean(-1), cmap="gray", vmin=-80, vmax=255)
    count = int((~np.isnan(heatmap[0])).sum())
    heatmap = heatmap[:count, :count]
    height = image.shape[0]
    step = (height - size) / max(count - 1, 1)
    first, last = (size - step) / 2, (size - step) / 2 + count * step
    extent = (first, last, last, first)
    axis.imshow(heatmap, cmap="inferno", alpha=0.6, extent=extent)
    axis.set(xlim=(0, height), ylim=(height, 0))


@matplotlib.rc_context(plots.RC)
def confused(arrays: Mapping, sizes: Sequence[int], classes) -> Figure:
    """Draw the surest mistakes of the narrowest and the widest branch (2020, Fig. 4).

    Each mistake has the patch that speaks most for the predicted class, and beside it
    the image of that class of which the branch is surest, with its strongest patch.
    """
    branches = (0, len(sizes) - 1)
    figure, grid = _grid(len(branches), COLUMNS)
    for row, j in zip(grid, branches):
        _label(row[0], f"B{sizes[j]}")
        right = arrays["predicted"][:, j] == arrays["label"]
        order = np.argsort(-arrays["confidence"][:, j], kind="stable")
        wrong = order[~right[order]][: COLUMNS // 2]
        for n, i in enumerate(wrong):
            said = arrays["predicted"][i, j]
            alike = order[right[order] & (arrays["label"][order] == said)][:1]
            _case(row[2 * n], arrays, i, j, sizes[j], classes)
            for other in alike:
                _case(row[2 * n + 1], arrays, other, j, sizes[j], classes)
    return figure


def _case(axis: Axes, arrays, i: int, j: int, size: int, classes) -> None:
    said, label = arrays["predicted"][i, j], arrays["label"][i]
    symbol, color = plots.VERDICTS[bool(said == label)]
    axis.imshow(arrays["image"][i])
    _square(axis, arrays["best"][i, j], size, color)
    text = f"{symbol} {classes[said]}, {arrays['confidence'][i, j]:.0%}"
    if said != label:
        text += f"\ntrue: {classes[label]}"
    axis.set_xlabel(text, color=color, parse_math=False, fontsize=8)


def _grid(rows: int, columns: int):
    """Return a figure and its axes [rows][columns], square and without ticks."""
    figure = Figure((SIDE * columns + 0.4, (SIDE + 0.35) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    return figure, grid


def _label(axis: Axes, text: str) -> None:
    axis.set_ylabel(text, fontsize=11)


def _square(axis: Axes, corner, size: int, color: str) -> None:
    y, x = corner
    axis.add_patch(Rectangle((x, y), size, size, fill=False, lw=1.8, ec=color))
