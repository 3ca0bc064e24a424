"""The report: one HTML page with figures, tables and what they show.

The page stands alone: its images are part of it, and it needs neither scripts nor a
network.

    path = report.write("out")  # out/report.html, out/accuracy_cost.png and .svg, ...
"""

import base64
import html
import os
import pathlib
import re
import string

from anchornet_jax.figures import pictures, plots, published, results
from anchornet_jax.runtime import files

ROUNDING = 1e-9  # of accuracies that are compared
ROWS = 6  # of examples in one figure, so that it fits on a printed page
TITLES = {
    "accuracy_cost": "Accuracy against cost",
    "accuracy_time": "Accuracy against time",
    "examples": "Where the networks looked",
    "accuracy_inputs": "What choosing the patches is worth",
    "exit_distribution": "When images leave",
}
READING_AIDS = {
    "accuracy_cost": """Higher and further left is better: on the solid line every image
        stops as soon as the networks are sure enough, at the squares all images get
        the same number of inputs (written beside them), and the dotted level is what
        one network that sees the full image reaches.""",
    "accuracy_time": """The same in milliseconds, measured with the engine that lets
        images leave when they are sure and fills their places in the batch.""",
    "examples": """Orange is where AnchorNet found evidence (scaled for each image) and
        the squares are its patches, best first; beside them stands each input with the
        class predicted after it, and what is pale was not needed any more.""",
    "accuracy_inputs": """Both lines start at the glance; the distance between them is
        what AnchorNet's choice of patches gains over random ones.""",
    "exit_distribution": """Each bar is a budget: the more may be spent, the more images
        go on to further patches; above it stands the mean number of inputs.""",
}
PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
       background: #fff; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin-bottom: .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
.finding { font-size: 1.15rem; border-left: .25rem solid #0072b2; padding-left: 1rem; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; margin: .5rem auto; }
figure.wide img { min-width: 40rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; margin: .5rem 0;
        font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #ddd; }
th { border-bottom: 1px solid #1a1a1a; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
@media print {
  body { max-width: none; margin: 0; font-size: 10pt; }
  .wide { overflow: visible; }
  th, td { padding: .15rem .35rem; font-size: 8pt; white-space: normal; }
  figure, tr, h2 + p { break-inside: avoid; }
  h2, h2 + p { break-after: avoid; }
  figure img, figure.wide img { min-width: 0; max-height: 21cm; }
}
</style>
</head>
<body>
<h1>$title</h1>
<p class="finding">$finding</p>
<p>$setting</p>
$body
</body>
</html>
""")


def write(directory: str | os.PathLike) -> pathlib.Path:
    """Write `report.html` and its figures, as PNG and SVG.

    Args:
      directory: where `summary.json` and `examples.npz` are, and the report goes.

    Returns:
      The path of the page.

    Raises:
      ValueError: as `results.read`.
    """
    directory = pathlib.Path(directory)
    summary, arrays = results.read(directory)
    imagenet = re.split("[/:]", summary["data"])[0] == "imagenet2012"
    others = published.BUDGETED + published.STATIC if imagenet else ()
    figures = {
        "accuracy_cost": [plots.accuracy_cost(summary, published=others)],
        "accuracy_time": _time(summary),
        "examples": _examples(arrays, summary["classes"]),
        "accuracy_inputs": [plots.accuracy_inputs(summary)],
        "exit_distribution": [plots.exit_distribution(summary["budgeted"])],
    }
    parts = [_part(directory, name, drawn) for name, drawn in figures.items() if drawn]
    page = PAGE.substitute(
        title=html.escape(f"AnchorNet on {summary['data']}"),
        finding=html.escape(finding(summary)),
        setting=html.escape(_setting(summary)),
        body="\n".join(parts + _tables(summary)),
    )
    path = directory / "report.html"
    with files.whole(path, "wb") as file:
        file.write(page.encode())
    return path


def finding(summary: dict) -> str:
    """Say in one sentence how early exit compares with the full-image network.

    The best budget decides whether it matches, comes within one point or stays below;
    of the budgets for which that is true, the sentence names the cheapest.
    """
    full, rows = summary["full_image"], summary["budgeted"]
    best = max(rows, key=lambda row: (row["accuracy"], -row["mean_macs"]))
    if full is None:
        return (
            f"At its best early exit is right on {_percent(best['accuracy'])} of the "
            f"test images, at {_macs(best['mean_macs'])} multiply-adds per image."
        )
    below = full["accuracy"] - best["accuracy"]
    if below <= 0:
        goal, verb = full["accuracy"], "Early exit matches"
    elif below <= 0.01 + ROUNDING:
        goal, verb = full["accuracy"] - 0.01, "Early exit comes within one point of"
    else:
        goal, verb = (
            best["accuracy"],
            f"Early exit stays {100 * below:.1f} points below",
        )
    reached = [row for row in rows if row["accuracy"] >= goal - ROUNDING]
    row = min(reached, key=lambda row: row["mean_macs"])
    return (
        f"{verb} the full-image network on the test images "
        f"({_percent(row['accuracy'])} against {_percent(full['accuracy'])} right) at "
        f"{row['mean_macs'] / full['macs']:.2f} times its multiply-adds"
        + (
            f" and {row['mean_time_ms'] / full['time_ms']:.2f} times its milliseconds."
            if full.get("time_ms")
            else "."
        )
    )


def _setting(summary):
    size, inputs = summary["patch_size"], len(summary["anytime"])
    return (
        f"{len(summary['classes'])} classes; patches of {size} × {size} pixels; at most "
        f"{inputs} inputs per image, the {summary['fuse']} of which are summed."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"  # no line break before the sign


def _threshold(value: float) -> str:
    """Return a threshold on a confidence; outside 0 to 1 all or none exceed it."""
    return "never" if value >= 1 else "always" if value < 0 else f"{value:.3f}"


def _macs(value: float) -> str:
    unit, letter = (1e9, "G") if value >= 1e9 else (1e6, "M")
    return f"{value / unit:.{2 if letter == 'G' else 1}f}\u00a0{letter}"


def _time(summary) -> list:
    """Draw the curve in milliseconds, where they were measured."""
    measured = summary["exit_time_ms"]
    return [plots.accuracy_cost(summary, x="time_ms")] if measured else []


def _examples(arrays, classes) -> list:
    rows = [slice(i, i + ROWS) for i in range(0, len(arrays["image"]), ROWS)]
    return [
        pictures.examples(
            {k: v[r] if v.ndim else v for k, v in arrays.items()}, classes
        )
        for r in rows
    ]


def _part(directory: pathlib.Path, name: str, figures: list) -> str:
    """Save figures; return them under their title, photographs as PNG, curves as SVG."""
    title, aid = TITLES[name], " ".join(READING_AIDS[name].split())
    suffix, kind, wide = (
        ("png", "png", ' class="wide"')
        if name == "examples"
        else ("svg", "svg+xml", "")
    )
    lines = [f"<h2>{html.escape(title)}</h2>", f"<p>{html.escape(aid)}</p>"]
    for number, figure in enumerate(figures, 1):
        path = directory / (name if number == 1 else f"{name}_{number}")
        plots.save(figure, path)
        data = base64.b64encode(path.with_suffix(f".{suffix}").read_bytes()).decode()
        image = (
            f'<img alt="{html.escape(title)}" src="data:image/{kind};base64,{data}">'
        )
        lines.append(f"<figure{wide}>{image}</figure>")
    return "\n".join(lines)


def _tables(summary) -> list[str]:
    tables = [_networks(summary), _anytime(summary), _budgeted(summary)]
    if seconds := summary["seconds"]:
        rows = [(name, f"{value:.1f}") for name, value in seconds.items()]
        rows.append(("together", f"{sum(seconds.values()):.1f}"))
        tables.append(_table("Time", ("stage", "seconds"), rows))
    return tables


def _table(title: str, header, rows, note: str = "") -> str:
    """Return a titled table; whatever is in it is text."""

    def line(cells, tag):
        cells = "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells)
        return f"<tr>{cells}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return (
        f"<h2>{html.escape(title)}</h2>\n"
        + (f"<p>{html.escape(note)}</p>\n" if note else "")
        + f'<div class="wide"><table>\n<thead>{line(header, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _networks(summary) -> str:
    rows = [("AnchorNet alone", summary["anchornet"])]
    if summary["full_image"]:
        rows.append(("full-image network", summary["full_image"]))
    rows = [(name, _percent(r["accuracy"]), _macs(r["macs"])) for name, r in rows]
    coverage, note = summary["anchornet"]["box_coverage"], ""
    if coverage is not None:
        note = (
            f"On average AnchorNet's best patch holds {_percent(coverage)} of the box "
            "around the object, which no network was shown."
        )
    return _table("Networks", ("network", "accuracy", "multiply-adds"), rows, note)


def _anytime(summary) -> str:
    rows = [
        (
            row["inputs"],
            _percent(row["accuracy"]),
            _percent(row["random_patches_accuracy"]),
            _macs(row["macs"]),
        )
        for row in summary["anytime"]
    ]
    note = "All images get the same number of inputs: the glance, then patches."
    header = ("inputs", "AnchorNet's patches", "random patches", "multiply-adds")
    return _table("Anytime prediction", header, rows, note)


def _budgeted(summary) -> str:
    header = ["budget", "used", "accuracy", "mean inputs"]
    if summary["exit_time_ms"]:
        header.insert(2, "ms")
    header += [plots.exit_name(exit) for exit in range(len(summary["anytime"]))]
    rows = []
    for row in sorted(summary["budgeted"], key=lambda row: row["budget_macs"]):
        costs = (_macs(row["budget_macs"]), _macs(row["mean_macs"]))
        numbers = (f"{row['expected_inputs']:.2f}", *map(_percent, row["exits"]))
        if summary["exit_time_ms"]:
            costs += (f"{row['mean_time_ms']:.2f}",)
        rows.append([*costs, _percent(row["accuracy"]), *numbers])
        if row["thresholds"]:
            rows[-1].append(", ".join(map(_threshold, row["thresholds"])))
    if any(row["thresholds"] for row in summary["budgeted"]):
        header.append("thresholds")
    note = (
        "The mean multiply-adds per image are held to a budget by a rule that is fitted "
        "on the calibration images; what is used is counted on the test images. Under "
        "the glance and each number of patches, the share of the images that leaves "
        "after it."
    )
    return _table("Budgeted batch classification", header, rows, note)
