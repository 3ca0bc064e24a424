"""Pictures of where the networks looked, what they said, and when they stopped.

figure = pictures.examples(dict(np.load("out/examples.npz")), classes)
plots.save(figure, "out/examples")
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import colors, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from anchornet_jax.figures import plots
from anchornet_jax.methods import patches
from anchornet_jax.models.receptive_field import ReceptiveField

HEAT = colors.LinearSegmentedColormap.from_list(
    "heat", [(1, 1, 1, 0), (0.9, 0.6, 0, 0.6), (0.84, 0.2, 0, 0.85)]
)
# Layout in inches: sides of the picture and of an input, and what lies around them.
PICTURE, INPUT, GAP, CAPTION, HEADER, MARGIN = 1.55, 0.95, 0.16, 0.36, 0.74, 0.3


def stride(height: int, width: int, size: int, grid, corners) -> int:
    """Return the stride S in px that relates a heatmap to its image.

    Args:
      height: of the image, in px.
      width: of the image, in px.
      size: side P of a patch, in px.
      grid: (rows, columns) of the heatmap.
      corners: [..., 2] int, patches on the lattice: they decide where the sizes alone
        leave more than one stride, as on small grids.

    Raises:
      ValueError: if no stride fits.
    """
    for step in range(max(height, width) - size + 1, 0, -1):
        lattice = ((height - size) // step + 1, (width - size) // step + 1)
        if lattice == tuple(grid) and not np.any(corners % step):
            return step
    raise ValueError(
        f"`grid` is {tuple(grid)}; no stride maps it to the `corners` of {size}-px "
        f"patches in {height}x{width}-px images"
    )


@matplotlib.rc_context(plots.RC)
def examples(
    arrays: Mapping[str, np.ndarray],
    classes: Sequence[str],
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw where the networks looked and what they said, a row per image.

    On the left the image in grey under its heatmap, with the patches: solid where they
    were looked at before the exit, dashed where they were not needed. On the right the
    inputs, and under each what is predicted after it.

    Args:
      arrays: image uint8 [B, H, W, 3], heatmap [B, G, G], corners int [B, K, 2] (y, x),
        valid bool [B, K], predicted [B, E] and confidence [B, E] after each input, exit
        [B] (0-based), patch_size P of the inputs, and, if known, the label [B], the
        object's box [B, 4] as (top, left, bottom, right) and the size [B] of each image's
        patches, else P, all in px. A heatmap that is smaller than others ends with NaN.
      classes: names of the N classes.
      names: of the images, beside them in place of their labels.

    Raises:
      ValueError: if heatmap, patches and image do not fit each other.
    """
    images, valid = np.asarray(arrays["image"]), np.asarray(arrays["valid"])
    b, height, width = images.shape[:3]
    size, inputs = int(arrays["patch_size"]), arrays["predicted"].shape[1]
    arrays = {"size": np.full(b, size), **arrays}
    glances = np.asarray(patches.resize(images.astype(np.float32), size))
    glances = glances.round().clip(0, 255).astype(np.uint8)

    figure = Figure(
        (
            MARGIN + PICTURE + inputs * (INPUT + GAP) + GAP,
            HEADER + b * (PICTURE + GAP),
        )
    )
    for i in range(b):
        row = {key: np.asarray(v)[i] for key, v in arrays.items() if np.ndim(v)}
        row["heatmap"] = _whole(row["heatmap"])
        grid, own = row["heatmap"].shape, int(row["size"])
        step = stride(height, width, own, grid, row["corners"][valid[i]])
        top = HEADER + i * (PICTURE + GAP)
        axes = _place(figure, MARGIN, top, PICTURE)
        _picture(axes, row, own, step)
        beside = names[i] if names else f"true: {classes[row['label']]}"
        axes.set_ylabel(_short(beside, 26), parse_math=False)
        for t in range(inputs):
            left = MARGIN + PICTURE + GAP + t * (INPUT + GAP)
            axes = _place(figure, left, top + (PICTURE - INPUT - CAPTION) / 2, INPUT)
            _input(axes, glances[i] if t == 0 else _crop(row, t - 1, own), row, t)
            _verdict(axes, row, t, classes)
            if i == 0:
                axes.set_title(f"patch {t}" if t else "glance", fontsize=8, pad=8)
    _legend(figure, "box" in arrays, "label" in arrays)
    return figure


@matplotlib.rc_context(plots.RC)
def locations(
    image: np.ndarray, field: ReceptiveField, places: Sequence[tuple[int, int]]
) -> Figure:
    """Draw what some locations of a network's last map see (2022, Eq. 1).

    Args:
      image: uint8 [H, W, 3].
      field: of the network.
      places: (row, column) of the locations; the centres of all others are dots.
    """
    height, width = image.shape[:2]
    figure = Figure((3.2 * width / height, 3.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image, extent=(0, width, height, 0))
    axes.axis("off")
    grid = np.indices(field.grid(height, width)).reshape(2, -1)  # [2, L]
    y, x = field.corner(grid) + field.size / 2
    axes.plot(x, y, ".", color="w", ms=3, mec="k", mew=0.4)
    for n, place in enumerate(places):
        y, x = field.corner(np.asarray(place))
        color = plots.exit_color(n + 1)
        _rectangle(axes, y, x, field.size, field.size, ec=color, lw=2)
        centre = np.array([x, y]) + field.size / 2
        _tag(axes, "{}, {}".format(*place), centre, color, ha="center", va="center")
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


@matplotlib.rc_context(plots.RC)
def panels(
    image: np.ndarray,
    patch_size: int,
    stride: int,
    maps: Mapping[str, tuple],
    top: float | None = None,
) -> Figure:
    """Draw an image once per heatmap or selection of patches, side by side.

    Args:
      image: uint8 [H, W, 3].
      patch_size: P, px.
      stride: S, px.
      maps: title -> heatmap [G, G], corners [K, 2] and valid [K]; K may be 0.
      top: value of the darkest colour where 0 shall be transparent, so that heatmaps
        can be compared; without it each has a scale of its own.
    """
    side = 2.2
    figure = Figure((len(maps) * (side + GAP) + GAP, side + 2 * GAP + 0.2))
    for n, (title, (heatmap, corners, valid)) in enumerate(maps.items()):
        axes = _place(figure, GAP + n * (side + GAP), GAP + 0.2, side)
        row = {"image": image, "heatmap": np.asarray(heatmap)}
        row |= {"corners": corners, "valid": np.asarray(valid), "exit": len(valid)}
        row["limits"] = (None, None) if top is None else (0, top)
        _picture(axes, row, patch_size, stride)
        axes.set_title(title, fontsize=8, pad=4)
    return figure


def _whole(heatmap: np.ndarray) -> np.ndarray:
    """Return the part of a heatmap [G, G] before the rows and columns of NaN alone."""
    there = ~np.isnan(heatmap)
    return heatmap[: there.any(1).sum(), : there.any(0).sum()]


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
    """Return the pixels [P, P, 3] of patch k, None if the image has none."""
    y, x = row["corners"][k]
    return row["image"][y : y + size, x : x + size] if row["valid"][k] else None


def _picture(axes: Axes, row: Mapping, size: int, step: int) -> None:
    height, width = row["image"].shape[:2]
    grey = row["image"] @ np.array([0.299, 0.587, 0.114])
    axes.imshow(grey, cmap="gray", vmin=-80, vmax=255, extent=(0, width, height, 0))
    # Location (i, j) stands for the patch whose centre is i S + P / 2, so the map ends
    # about half a patch before the image does.
    first = (size - step) / 2
    bottom, right = (first + n * step for n in row["heatmap"].shape)
    extent = (first, right, bottom, first)
    low, high = row.get("limits", (None, None))
    look = {"cmap": HEAT, "vmin": low, "vmax": high, "interpolation": "bilinear"}
    axes.imshow(row["heatmap"], extent=extent, **look)
    axes.set(xlim=(0, width), ylim=(height, 0))
    if "box" in row:
        top, left, bottom, right = row["box"]
        _rectangle(axes, top, left, bottom - top, right - left, ec="w", ls=":", lw=1)
    for k in reversed(np.flatnonzero(row["valid"])):
        _patch(axes, *row["corners"][k], size, k, seen=k < row["exit"])


def _patch(axes: Axes, y, x, size: int, k: int, *, seen: bool) -> None:
    color = plots.exit_color(k + 1)
    look = {"ls": "-", "lw": 1.8} if seen else {"ls": (0, (4, 3)), "lw": 0.9}
    _rectangle(axes, y, x, size, size, ec=color, **look)
    _tag(axes, str(k + 1), (x + 5, y + 6), color, va="top", alpha=1 if seen else 0.7)


def _rectangle(axes: Axes, y, x, height, width, *, lw: float, **kwargs) -> None:
    shape = Rectangle((x, y), width, height, fill=False, lw=lw, **kwargs)
    # A dark casing: the line shows on any pixels.
    casing = patheffects.withStroke(linewidth=1.4 * lw + 0.6, foreground="k")
    shape.set_path_effects([casing])
    axes.add_patch(shape)


def _tag(axes: Axes, text: str, point, color: str, *, alpha=1, **kwargs) -> None:
    """Write on a small plate of that colour, dark or light as can be read on it."""
    bright = np.dot(colors.to_rgb(color), (0.3, 0.6, 0.1)) > 0.5
    axes.text(
        *point,
        text,
        fontsize=6.5,
        fontweight="bold",
        color="k" if bright else "w",
        bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5, "alpha": alpha},
        **kwargs,
    )


def _input(axes: Axes, pixels: np.ndarray | None, row: Mapping, t: int) -> None:
    """Draw one input: framed and marked at the exit, pale after it."""
    needed = t <= row["exit"]
    if pixels is None:
        axes.text(0.5, 0.5, "no patch", ha="center", va="center", color="#666666")
    else:
        axes.imshow(pixels, alpha=1 if needed else 0.3)
    axes.spines[:].set(visible=True, color="#999999", linestyle="-" if needed else "--")
    if t == row["exit"]:
        color = plots.exit_color(t)
        axes.spines[:].set(color=color, linewidth=3)
        middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
        _tag(axes, "EXIT", (0.5, 1), color, **middle)


def _verdict(axes: Axes, row: Mapping, t: int, classes: Sequence[str]) -> None:
    """Write what is predicted after input t, how surely, and, if known, if rightly."""
    symbol, color = "", "k"
    if "label" in row:
        symbol, color = plots.VERDICTS[bool(row["predicted"][t] == row["label"])]
    name = _short(classes[row["predicted"][t]], 14)
    axes.set_xlabel(
        f"{symbol} {name}\n{row['confidence'][t]:.0%}".lstrip(),
        parse_math=False,
        fontsize=8,
        fontweight="bold" if t == row["exit"] else "normal",
        color=color if t <= row["exit"] else "#888888",
        labelpad=3,
    )


def _legend(figure: Figure, boxes: bool, labels: bool) -> None:
    line = {"fill": False, "ec": "k"}
    handles = [
        Patch(facecolor=HEAT(0.9), label="evidence for AnchorNet's class"),
        Patch(**line, lw=1.8, label="patch looked at"),
        Patch(**line, lw=0.9, ls=(0, (4, 3)), label="patch not needed"),
    ]
    if boxes:
        handles.append(Patch(**line, ls=":", label="object, for scoring only"))
    for right, (symbol, color) in plots.VERDICTS.items() if labels else ():
        look = {"ls": "none", "marker": f"${symbol}$", "color": color, "ms": 7}
        handles.append(Line2D([], [], **look, label="right" if right else "wrong"))
    figure.legend(handles=handles, loc="upper center", ncols=3, fontsize=8)
