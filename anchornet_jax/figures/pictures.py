"""Pictures of where the networks looked, what they said, and when they stopped.

figure = pictures.examples(dict(np.load("out/examples.npz")), classes, exits)
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
from anchornet_jax.models.receptive_field import ReceptiveField

HEAT = colors.LinearSegmentedColormap.from_list(
    "heat", [(1, 1, 1, 0), (0.9, 0.6, 0, 0.6), (0.84, 0.2, 0, 0.85)]
)
# Layout in inches: sides of the picture and of an input, and what lies around them.
PICTURE, INPUT, GAP, CAPTION, HEADER, MARGIN = 1.55, 0.95, 0.16, 0.36, 0.74, 0.3
LONGEST = 512  # px, about, to which the picture of a large image is thinned out


@matplotlib.rc_context(plots.RC)
def examples(
    arrays: Mapping[str, np.ndarray],
    classes: Sequence[str],
    exits: Sequence[str],
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw where a method looked and what it said, a row per image.

    On the left the image in grey under its heatmap, with the regions: solid where they
    were looked at before the exit, dashed where they were not needed. On the right what
    each step looked at, and under it what is predicted after it.

    Args:
      arrays: image uint8 [B, H, W, 3], predicted [B, E] and confidence [B, E] at each
        exit, exit [B] (0-based) and, where the method has them, boxes int [B, E, 4],
        heatmap [B, G, G] and extent [B, 4] as in `method.Regions`; if known, the label
        [B] and the object's box [B, 4], all in px as (top, left, bottom, right).
      classes: names of the N classes.
      exits: names of the E exits.
      names: of the images, beside them in place of their labels.

    Raises:
      ValueError: if a box is neither inside the image nor absent.
    """
    images = np.asarray(arrays["image"])
    b, height, width = images.shape[:3]
    steps, chosen = arrays["predicted"].shape[1], "boxes" in arrays
    if not chosen:
        whole = np.broadcast_to([0, 0, height, width], (b, steps, 4))
        arrays = {**arrays, "boxes": whole}
    _check(np.asarray(arrays["boxes"]), height, width)
    figure = Figure(
        (
            MARGIN + PICTURE + steps * (INPUT + GAP) + GAP,
            HEADER + b * (PICTURE + GAP),
        )
    )
    for i in range(b):
        row = {key: np.asarray(v)[i] for key, v in arrays.items() if np.ndim(v)}
        top = HEADER + i * (PICTURE + GAP)
        axes = _place(figure, MARGIN, top, PICTURE)
        _picture(axes, row)
        beside = names[i] if names else f"true: {classes[row['label']]}"
        axes.set_ylabel(_short(beside, 26), parse_math=False)
        for t in range(steps):
            left = MARGIN + PICTURE + GAP + t * (INPUT + GAP)
            axes = _place(figure, left, top + (PICTURE - INPUT - CAPTION) / 2, INPUT)
            _input(axes, _seen(row["image"], row["boxes"][t]), row, t)
            _verdict(axes, row, t, classes)
            if i == 0:
                axes.set_title(exits[t], fontsize=8, pad=8)
    _legend(figure, arrays, regions=chosen)
    return figure


def _check(boxes, height, width) -> None:
    low, high = boxes[..., :2], boxes[..., 2:]
    inside = (low >= 0) & (high > low) & (high <= np.array([height, width]))
    bad = ~(inside.all(-1) | (boxes == -1).all(-1))
    if bad.any():
        raise ValueError(
            f"`boxes` holds {boxes[bad][0].tolist()}; in {height}x{width}-px images a "
            "box is (top, left, bottom, right) inside them, or -1 four times"
        )


def _seen(image: np.ndarray, box: np.ndarray) -> np.ndarray | None:
    """Return the pixels of a box, shrunk alike for whatever size; None if absent."""
    top, left, bottom, right = box
    if top < 0:
        return None
    pixels = image[top:bottom, left:right]
    step = max(1, max(pixels.shape[:2]) // 112)
    return pixels[::step, ::step]


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
        _rectangle(axes, (y, x, y + field.size, x + field.size), ec=color, lw=2)
        centre = np.array([x, y]) + field.size / 2
        _tag(axes, "{}, {}".format(*place), centre, color, ha="center", va="center")
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


@matplotlib.rc_context(plots.RC)
def panels(
    image: np.ndarray,
    field: ReceptiveField,
    maps: Mapping[str, tuple],
    top: float | None = None,
) -> Figure:
    """Draw an image once per heatmap or selection of patches, side by side.

    Args:
      image: uint8 [H, W, 3].
      field: size and stride of the patches.
      maps: title -> heatmap [G, G], corners [K, 2] and valid [K]; K may be 0.
      top: value of the darkest colour where 0 shall be transparent, so that heatmaps
        can be compared; without it each has a scale of its own.
    """
    side = 2.2
    figure = Figure((len(maps) * (side + GAP) + GAP, side + 2 * GAP + 0.2))
    for n, (title, (heatmap, corners, valid)) in enumerate(maps.items()):
        axes = _place(figure, GAP + n * (side + GAP), GAP + 0.2, side)
        heatmap, corners = np.asarray(heatmap), np.asarray(corners).reshape(-1, 2)
        boxes = np.concatenate([corners, corners + field.size], -1)
        boxes[~np.asarray(valid, bool)] = -1
        first = (field.size - field.stride) / 2
        last = first + np.array(heatmap.shape) * field.stride
        row = {"image": image, "heatmap": heatmap, "extent": (first, first, *last)}
        # A first step that looks at the whole image comes before the patches.
        row |= {"boxes": np.concatenate([[4 * [-1]], boxes]), "exit": len(boxes)}
        row["limits"] = (None, None) if top is None else (0, top)
        _picture(axes, row)
        axes.set_title(title, fontsize=8, pad=4)
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


def _picture(axes: Axes, row: Mapping) -> None:
    """Draw an image in grey, its heatmap and the regions that are not all of it."""
    height, width = row["image"].shape[:2]
    step = max(1, max(height, width) // LONGEST)
    grey = row["image"][::step, ::step] @ np.array([0.299, 0.587, 0.114])
    axes.imshow(grey, cmap="gray", vmin=-80, vmax=255, extent=(0, width, height, 0))
    if "heatmap" in row and not np.isnan(row["heatmap"]).all():
        top, left, bottom, right = row["extent"]
        low, high = row.get("limits", (None, None))
        look = {"cmap": HEAT, "vmin": low, "vmax": high, "interpolation": "bilinear"}
        heatmap = np.ma.masked_invalid(row["heatmap"])
        axes.imshow(heatmap, extent=(left, right, bottom, top), **look)
    axes.set(xlim=(0, width), ylim=(height, 0))
    if "box" in row and row["box"][0] >= 0:  # known
        _rectangle(axes, row["box"], ec="w", ls=":", lw=1)
    whole = np.array([0, 0, height, width])
    for t in reversed(range(len(row["boxes"]))):
        box = row["boxes"][t]
        if box[0] >= 0 and (box != whole).any():
            _region(axes, box, t, seen=t <= row["exit"])


def _region(axes: Axes, box, t: int, *, seen: bool) -> None:
    color = plots.exit_color(t)
    look = {"ls": "-", "lw": 1.8} if seen else {"ls": (0, (4, 3)), "lw": 0.9}
    _rectangle(axes, box, ec=color, **look)
    point = (box[1] + 5, box[0] + 6)
    _tag(axes, str(t), point, color, va="top", alpha=1 if seen else 0.7)


def _rectangle(axes: Axes, box, *, lw: float, **kwargs) -> None:
    top, left, bottom, right = box
    shape = Rectangle(
        (left, top), right - left, bottom - top, fill=False, lw=lw, **kwargs
    )
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
        axes.text(0.5, 0.5, "nothing", ha="center", va="center", color="#666666")
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


def _legend(figure: Figure, arrays: Mapping, *, regions: bool) -> None:
    line = {"fill": False, "ec": "k"}
    handles = []
    if "heatmap" in arrays:
        handles.append(Patch(facecolor=HEAT(0.9), label="evidence"))
    if regions:
        handles.append(Patch(**line, lw=1.8, label="looked at"))
        handles.append(Patch(**line, lw=0.9, ls=(0, (4, 3)), label="not needed"))
    if "box" in arrays and (np.asarray(arrays["box"])[:, 0] >= 0).any():
        handles.append(Patch(**line, ls=":", label="object, for scoring only"))
    for right, (symbol, color) in plots.VERDICTS.items() if "label" in arrays else ():
        look = {"ls": "none", "marker": f"${symbol}$", "color": color, "ms": 7}
        handles.append(Line2D([], [], **look, label="right" if right else "wrong"))
    if handles:
        figure.legend(handles=handles, loc="upper center", ncols=3, fontsize=8)
