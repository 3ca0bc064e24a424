"""The report: one HTML page with figures, tables and what they show.

The page stands alone: its images are part of it, and it needs neither scripts nor a
network.

    path = report.write("out")  # out/report.html, out/accuracy_cost.png and .svg, ...
"""

import base64
import html
import math
import os
import pathlib
import re
import string

from anchornet_jax.figures import examples, pictures, plots, published
from anchornet_jax.inference import results
from anchornet_jax.inference.results import Evaluation
from anchornet_jax.runtime import files

ROUNDING = 1e-9  # of accuracies that are compared
FEW = 1000  # images; of fewer, accuracies carry their standard error
NEARLY_ALL = 0.995  # of the images
RANDOM = "random patches"  # the reference that looks anywhere
ROWS = 6  # of examples in one figure, so that it fits on a printed page
TITLES = {
    "accuracy_cost": "Accuracy against cost",
    "accuracy_time": "Accuracy against time",
    "examples": "Where the networks looked",
    "accuracy_exits": "What each step is worth",
    "exit_distribution": "When images leave",
    "reliability": "Whether confidence is a probability",
}
READING_AIDS = {
    "accuracy_cost": """Higher and further left is better: on the solid line every image
        stops as soon as the method is sure enough, at the squares all images leave at
        the same exit (its number beside them), and the dotted level is what the best
        network reaches that sees the whole image at once.""",
    "accuracy_time": """The same in milliseconds, measured with the engine that lets
        images leave when they are sure and fills their places in the batch.""",
    "examples": """Orange is where evidence was found (scaled for each image) and the
        squares are what was looked at, in order; beside them stands what each step saw
        with the class predicted after it, and what is pale was not needed any more.""",
    "accuracy_exits": """How accurate all images are at each exit, beside the same steps
        with other choices of where to look.""",
    "exit_distribution": """Each bar is a budget: the more may be spent, the more images
        take further steps; above it stands the mean number of steps.""",
    "reliability": """Answers of equal confidence are put together: on the dotted line
        they are right as often as they are sure, below it they are too sure. The number
        is the mean distance from the line over the images, the expected calibration
        error.""",
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
      ValueError: as `results.read` and `examples.read`.
    """
    directory = pathlib.Path(directory)
    summary = results.read(directory)
    arrays = examples.read(directory, len(summary.classes), len(summary.exits))
    imagenet = re.split("[/:]", summary.data)[0] == "imagenet2012"
    others = published.BUDGETED + published.STATIC if imagenet else ()
    figures = {
        "accuracy_cost": [plots.accuracy_cost(summary, published=others)],
        "accuracy_time": _time(summary),
        "examples": _examples(arrays, summary),
        "accuracy_exits": [plots.accuracy_exits(summary)]
        if len(summary.exits) > 1
        else [],
        "exit_distribution": [plots.exit_distribution(summary)]
        if summary.budgeted
        else [],
        "reliability": [plots.reliability(summary)] if summary.reliability else [],
    }
    parts = [
        part(directory, name, TITLES[name], " ".join(READING_AIDS[name].split()), drawn)
        for name, drawn in figures.items()
        if drawn
    ]
    text = page(
        f"{summary.method['name']} on {summary.data}",
        finding(summary),
        _setting(summary),
        parts + _tables(summary),
    )
    path = directory / "report.html"
    with files.whole(path, "wb") as file:
        file.write(text.encode())
    return path


def page(title: str, finding: str, setting: str, parts: list[str]) -> str:
    """Return a page that stands alone; `parts` are HTML, the other arguments text."""
    return PAGE.substitute(
        title=html.escape(title),
        finding=html.escape(finding),
        setting=html.escape(setting),
        body="\n".join(parts),
    )


def finding(summary: Evaluation) -> str:
    """Say what happened: first what speaks against the method, then how it compares.

    Patches may not help, all images may leave at the glance, random patches may be as
    good, and what the method is compared with may be worse than the glance. Where one of
    these is so, the first sentence says it. Differences below the standard error of a
    difference between two accuracies count as none.
    """
    against = [text for text in (rule(summary) for rule in DOUBTS) if text]
    if not against:
        return comparison(summary)
    first = "; ".join(against)
    return f"{first[0].upper()}{first[1:]}. {comparison(summary)}"


def _not_better(summary, one: float, other: float) -> bool:
    """Say whether an accuracy is not above another by more than chance."""
    errors = (results.standard_error(share, summary.images) for share in (one, other))
    return one - other <= math.hypot(*errors) + ROUNDING


def _steps_help_not(summary) -> str:
    first, later = summary.anytime[0], summary.anytime[1:] + summary.budgeted
    if len(summary.exits) < 2 or not later:
        return ""
    best = max(point.accuracy for point in later)
    if not _not_better(summary, best, first.accuracy):
        return ""
    steps = "patches do" if _has_patches(summary) else "later exits do"
    return (
        f"{steps} not help: after the {summary.exits[0]} alone "
        f"{accuracy(summary, first.accuracy)} of the test images are right, at best "
        f"{accuracy(summary, best)} with more"
    )


def _all_leave_at_once(summary) -> str:
    if not summary.budgeted:
        return ""
    least = min(point.exits[0] for point in summary.budgeted)
    if least < NEARLY_ALL:
        return ""
    return (
        f"at every budget {percent(least)} of the images or more leave after the "
        f"{summary.exits[0]}"
    )


def _random_is_as_good(summary) -> str:
    other = summary.references.get(RANDOM)
    same = other is not None and len(other.anytime) == len(summary.anytime)
    if not same or len(summary.anytime) < 2:
        return ""
    own, other = max(
        zip(summary.anytime[1:], other.anytime[1:]), key=lambda pair: pair[0].accuracy
    )
    if not _not_better(summary, own.accuracy, other.accuracy):
        return ""
    return (
        f"{RANDOM} are as good as those that were chosen "
        f"({accuracy(summary, other.accuracy)} against {accuracy(summary, own.accuracy)} "
        "right)"
    )


def _reference_is_poor(summary) -> str:
    reference, first = summary.reference(), summary.anytime[0]
    if reference is None or len(summary.exits) < 2:
        return ""
    name, whole = reference
    if _not_better(summary, first.accuracy, whole.accuracy):
        return ""
    return (
        f"{name} is no measure: it is right on {accuracy(summary, whole.accuracy)}, "
        f"fewer than after the {summary.exits[0]} alone "
        f"({accuracy(summary, first.accuracy)})"
    )


def _has_patches(summary) -> bool:
    return any(name.startswith("patch") for name in summary.exits)


DOUBTS = (_steps_help_not, _all_leave_at_once, _random_is_as_good, _reference_is_poor)


def comparison(summary: Evaluation) -> str:
    """Say in one sentence how the method compares with one network on the whole image.

    The best budget decides whether it matches the best such reference, comes within one
    point or stays below; of the budgets for which that is true, the sentence names the
    cheapest.
    """
    rows, reference = summary.budgeted or summary.anytime, summary.reference()
    who = "early exit" if summary.budgeted else summary.method["name"]
    best = max(rows, key=lambda row: (row.accuracy, -row.cost))
    if reference is None:
        return (
            f"At its best {who} is right on {accuracy(summary, best.accuracy)} of the test "
            f"images, at {macs(best.cost)} multiply-adds per image."
        )
    start = who[0].upper() + who[1:]
    name, whole = reference
    below = whole.accuracy - best.accuracy
    if below <= 0:
        goal, verb = whole.accuracy, f"{start} matches"
    elif below <= 0.01 + ROUNDING:
        goal, verb = whole.accuracy - 0.01, f"{start} comes within one point of"
    else:
        goal, verb = best.accuracy, f"{start} stays {100 * below:.1f} points below"
    reached = [row for row in rows if row.accuracy >= goal - ROUNDING]
    row = min(reached, key=lambda row: row.cost)
    return (
        f"{verb} {name} on the test images ({accuracy(summary, row.accuracy)} against "
        f"{accuracy(summary, whole.accuracy)} right) at {row.cost / whole.cost:.2f} times its "
        "multiply-adds"
        + (
            f" and {row.time_ms / whole.time_ms:.2f} times its milliseconds."
            if whole.time_ms and row.time_ms
            else "."
        )
    )


def _setting(summary):
    settings = {
        key: value
        for key, value in summary.method.items()
        if key not in ("name", "networks")
    }
    said = ", ".join(f"{key} {value}" for key, value in settings.items())
    exits = f"{len(summary.exits)} exit{'s' * (len(summary.exits) > 1)}"
    return f"{len(summary.classes)} classes, {exits}{'; ' * bool(said)}{said}."


def percent(share: float) -> str:
    """Write a share with a sign that no line break parts from it."""
    return f"{100 * share:.1f}\u00a0%"  # no line break before the sign


def accuracy(summary: Evaluation, share: float) -> str:
    """Write an accuracy, with its standard error where it rests on few images."""
    if not summary.images or summary.images >= FEW:
        return percent(share)
    error = results.standard_error(share, summary.images)
    return f"{100 * share:.1f}\u00a0±\u00a0{100 * error:.1f}\u00a0%"


def _threshold(value: float) -> str:
    """Return a threshold on a confidence; outside 0 to 1 all or none exceed it."""
    return "never" if value >= 1 else "always" if value < 0 else f"{value:.3f}"


def macs(value: float) -> str:
    """Write multiply-adds in M or G."""
    unit, letter = (1e9, "G") if value >= 1e9 else (1e6, "M")
    return f"{value / unit:.{2 if letter == 'G' else 1}f}\u00a0{letter}"


def _time(summary) -> list:
    """Draw the curve in milliseconds, where they were measured."""
    measured = summary.exit_time_ms
    return [plots.accuracy_cost(summary, x="time_ms")] if measured else []


def _examples(arrays, summary) -> list:
    rows = [slice(i, i + ROWS) for i in range(0, len(arrays["image"]), ROWS)]
    return [
        pictures.examples(
            {name: array[row] for name, array in arrays.items()},
            summary.classes,
            summary.exits,
        )
        for row in rows
    ]


def part(
    directory: pathlib.Path, name: str, title: str, aid: str, figures: list
) -> str:
    """Save figures; return them under their title, photographs as PNG, curves as SVG.

    Args:
      directory: where they are saved as `name`.png and .svg, `name`_2.png …
      name: of the files.
      title: above them.
      aid: a sentence under the title that helps to read them; may be empty.
      figures: from `plots` or `pictures`.
    """
    photographs = name == "examples"
    suffix, kind = ("png", "png") if photographs else ("svg", "svg+xml")
    wide = ' class="wide"' if photographs else ""
    lines = [f"<h2>{html.escape(title)}</h2>"]
    lines += [f"<p>{html.escape(aid)}</p>"] if aid else []
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
    tables = [_anytime(summary)]
    if summary.budgeted:
        tables.append(_budgeted(summary))
    if seconds := summary.seconds:
        rows = [(name, f"{value:.1f}") for name, value in seconds.items()]
        rows.append(("together", f"{sum(seconds.values()):.1f}"))
        tables.append(table("Time", ("stage", "seconds"), rows))
    return tables


def table(title: str, header, rows, note: str = "") -> str:
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


def _anytime(summary) -> str:
    own = (summary.method["name"], summary.exits, summary.anytime)
    others = ((n, r.exits, r.anytime) for n, r in summary.references.items())
    rows = [
        (
            name,
            exit,
            accuracy(summary, point.accuracy),
            macs(point.cost),
            milliseconds(point.time_ms),
        )
        for name, exits, points in (own, *others)
        for exit, point in zip(exits, points)
    ]
    note = "All images leave at the same exit."
    if summary.images and summary.images < FEW:
        note += (
            f" Accuracies rest on {summary.images:.0f} test images; ± is the standard "
            "error."
        )
    if summary.box_coverage is not None:
        note += (
            " On average the first region that was chosen holds "
            f"{percent(summary.box_coverage)} of the box around the object, which no "
            "network was shown."
        )
    header = ("method", "all leave after", "accuracy", "multiply-adds", "ms")
    return table("Anytime prediction", header, rows, note)


def milliseconds(value: float | None) -> str:
    """Write milliseconds, a dash where they were not measured."""
    return "–" if value is None else f"{value:.2f}"


def _budgeted(summary) -> str:
    header = ["budget", "used", "ms", "accuracy", "mean steps", *summary.exits]
    rows = []
    for row in sorted(summary.budgeted, key=lambda row: row.budget):
        costs = (macs(row.budget), macs(row.cost), milliseconds(row.time_ms))
        numbers = (f"{row.steps:.2f}", *map(percent, row.exits))
        rows.append([*costs, accuracy(summary, row.accuracy), *numbers])
        if thresholds := (row.rule or {}).get("thresholds"):
            rows[-1].append(", ".join(map(_threshold, thresholds)))
    if len(rows[0]) > len(header):
        header.append("thresholds")
    note = (
        "The mean multiply-adds per image are held to a budget by a rule that is fitted "
        "on the calibration images; what is used is counted on the test images. Under "
        "the name of each exit stands the share of the images that leaves there."
    )
    if by := summary.budgeted[0].decided_by:
        note += f" Rule: {by}."
    return table("Budgeted batch classification", header, rows, note)
