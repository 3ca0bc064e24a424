"""Images of one's own through an export: a line, a JSON line and a picture each.

The images run through the early-exit `engine`, in their order, while threads decode the
next ones. Of several hosts each takes its share, every n-th image, and writes its own
lines and pictures; process 0 sums up. Milliseconds are those that an image spends in the
engine; at a batch size above 1 they include waiting for others.

    python main.py --config=configs/predict.py --config.export=EXPORT --config.images=…
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from anchornet_jax.data import photos
from anchornet_jax.figures import pictures, plots
from anchornet_jax.inference import control, engine, exit_table, export, stopping
from anchornet_jax.methods import method as protocol
from anchornet_jax.runtime import console, files, parallel, text, workdir

ABOUT, PREDICTIONS, PICTURES = "prediction.json", "predictions.jsonl", "pictures"
SUMMARY = "summary.json"
NOT_FINITE = "the networks' answer is not finite"  # a prediction's `error`
HOLDS = ("", MACS := "macs", MS := "ms")  # units of a budget that is held


class Unreadable(RuntimeError):
    """Some files could not be read; everything else was done."""


class Prediction(NamedTuple):
    """What became of one file.

    Attributes:
      path: of the file.
      image: uint8 [H, W, 3] as the networks saw it, or why it could not be read.
      result: of the engine, None for a file that could not be read.
      time_ms: in the engine.
    """

    path: pathlib.Path
    image: np.ndarray | ValueError
    result: engine.Result | None = None
    time_ms: float = 0.0


def predict(config, directory) -> dict:
    """Classify the images of `config.images` with the export `config.export`.

    Prints a line per image; writes `predictions.jsonl`, a line per image too as soon as
    it is known, with `config.pictures` also `pictures`, and at the end `summary.json`. Of
    several hosts each has a folder, `host_0_of_2` and so on, for all but the summary.
    Lines hold `file`, `class`,
    `confidence`, `exit` (0-based), `macs`, `time_ms` and `picture`, or `file` and
    `error`. A prediction that was killed goes on where it stopped; one that had ended, or
    was of something else, is replaced.

    With `config.hold` the mean cost of the images of each host is kept at the budget as it
    goes, see `control`; what a killed prediction has spent counts.

    Returns:
      `images`, `unreadable`, `budget_macs`, `mean_macs` and `exits`, the share of the
      images that left at each; where milliseconds are held, `budget_ms` and `mean_ms` by
      what an exit costs at full batches.

    Raises:
      ValueError: for a config that cannot run, before anything is written.
      Unreadable: at the end, if files could not be read.
    """
    found, rule, budget = _export(config)
    paths = _share(config.images)
    classifier = engine.Classifier(
        found.method,
        rule,
        image_size=found.image_size,
        batch_size=config.batch_size,
        in_flight=None if config.batch_size > 1 else config.batch_size,
    )
    costs = {MACS: found.macs}
    if config.hold == MS:
        warm(classifier)
        costs[MS] = classifier.milliseconds().tolist()
    if config.hold:
        classifier.rule = _held(found, budget, costs.get(MS))
    settings = _settings(config, found, budget)
    own = parallel.together(lambda: _own(directory))
    journal = parallel.together(lambda: Journal(own, paths, settings))
    known = journal.known
    if known:
        logging.info("%d of %d files are known from before", len(known), len(paths))
    if len(known) < len(paths):
        warm(classifier)
    draw = _make_draw(found, journal) if config.pictures else lambda *_: {}
    left = console.reporter(len(paths), len(known))
    rest = classify(
        classifier, found, paths[len(known) :], config.max_pixels, _exits(known, found)
    )
    with journal.writing() as write:
        for number, one in enumerate(rest, 1 + len(known)):
            about = {"file": str(one.path), **describe(found, one)}
            if "error" in about:
                logging.error("%s: %s", text.printable(one.path), about["error"])
            else:
                about |= draw(number, one)
                print(f"{text.printable(one.path)}: {line(about)}", flush=True)
            write(about)
            if (seconds := left(number)) is not None:
                logging.info(
                    "%d of %d files, %s left",
                    *(number, len(paths), console.remaining(seconds)),
                )
    return _finish(found, journal, budget, costs, pathlib.Path(directory))


def _share(images: str) -> list[pathlib.Path]:
    """Return this host's share of the images, of which process 0 makes the list."""

    def names():
        try:
            return [os.fsencode(path) for path in photos.find(images)]
        except ValueError as error:
            raise ValueError(f"`config.images`: {error}") from None

    found = parallel.from_first(names)
    own = found[jax.process_index() :: jax.process_count()]
    return [pathlib.Path(os.fsdecode(name)) for name in own]


def _own(directory) -> pathlib.Path:
    """Return where this host writes: of several, each has a folder of its own.

    Raises:
      ValueError: if the directory holds something else than folders of as many hosts.
    """
    path, hosts = pathlib.Path(directory), jax.process_count()
    if hosts == 1:
        return path
    folders = [f"host_{number}_of_{hosts}" for number in range(hosts)]
    others = {item.name for item in path.iterdir()} if path.exists() else set()
    others = {name for name in others if name[0] != "."} - {*folders, SUMMARY}
    if others:
        raise ValueError(
            f"`workdir` is {str(path)!r}, which holds other files; give a new or empty "
            f"directory, or that of an earlier prediction by {hosts} hosts"
        )
    return path / folders[jax.process_index()]


def _settings(config, found, budget) -> dict:
    """Return what the answers depend on: a prediction of other settings is another."""
    return {
        "export": found.metadata["method"],
        "networks": export.digests(found.method),
        "images": str(config.images),
        "budget": budget,
        "pictures": config.pictures,
    } | ({"hold": config.hold} if config.hold else {})


class Journal:
    """What a prediction writes, what of it is known from before, and nothing else.

    The directory is the prediction's if `prediction.json` says so. Of an earlier one
    only the pictures that its lines name are removed; never what is an input.

    Attributes:
      directory: of the prediction.
      known: lines of a prediction of the same settings that was killed.
    """

    def __init__(self, directory, paths, settings: dict):
        """Lock the directory, and remove what an earlier prediction wrote.

        Raises:
          ValueError: if the directory cannot be written, another process works in it, or
            it holds other files or an input.
        """
        self.directory, self._paths = pathlib.Path(directory), paths
        self._settings = settings
        try:
            self._check()
            workdir.lock(self.directory)
            files.remove_partial(self.directory)
            self.known = self._read()
            if not self.known:
                self._remove()
                files.write_sealed(self._about, {"settings": settings, "done": False})
                self._lines.touch()
            (self.directory / PICTURES).mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"`workdir` is {str(directory)!r}: {error}") from error

    @property
    def _about(self):
        return self.directory / ABOUT

    @property
    def _lines(self):
        return self.directory / PREDICTIONS

    def picture(self, number: int, path) -> pathlib.Path:
        """Return where the picture of the image of that number is, less its ending."""
        return self.directory / PICTURES / f"{number:05d}_{path.stem[:40]}"

    def lines(self) -> list[dict]:
        """Return what is known of each image, as far as whole lines go."""
        found = []
        for one in self._lines.read_text().splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                if one.endswith("\n") and isinstance(about := json.loads(one), dict):
                    found.append(about)
                    continue
            break
        return found

    @contextlib.contextmanager
    def writing(self):
        """Yield the function that writes a line, after those that are known."""
        with open(self._lines, "r+") as file:
            for _ in self.known:
                file.readline()
            file.seek(file.tell())
            file.truncate()  # a line that was cut off

            def write(about):
                file.write(json.dumps(about) + "\n")
                file.flush()

            yield write
        files.write_sealed(self._about, {"settings": self._settings, "done": True})

    def _check(self) -> None:
        """Refuse directories of others, and inputs where something would be written."""
        path = self.directory
        if not path.exists():
            return
        names = {item.name for item in path.iterdir() if item.name[0] != "."}
        ours = {PREDICTIONS, PICTURES, ABOUT, SUMMARY}
        if names and ABOUT not in names or names - ours:
            raise ValueError(
                f"`workdir` is {str(path)!r}, which holds other files; give a new or "
                "empty directory, or that of an earlier prediction to be replaced"
            )
        here = os.path.realpath(path)
        for one in self._paths:
            if os.path.realpath(one).startswith(here + os.sep):
                raise ValueError(
                    f"`workdir` is {str(path)!r}, which holds the input "
                    f"{text.printable(one)}; give another directory"
                )

    def _read(self) -> list[dict]:
        """Return the lines of an unfinished prediction of the same settings."""
        if not self._about.exists() or not self._lines.exists():
            return []
        about, lines = files.read_sealed(self._about), self.lines()
        names = [line.get("file") for line in lines]
        same = about["settings"] == json.loads(json.dumps(self._settings))
        same &= names == [str(path) for path in self._paths[: len(names)]]
        return lines if same and not about["done"] else []

    def _remove(self) -> None:
        """Remove what the lines of an earlier prediction name as its own."""
        if self._lines.exists():
            for line in self.lines():
                picture = (
                    self.directory
                    / PICTURES
                    / os.path.basename(line.get("picture", ""))
                )
                if picture.is_file():
                    picture.unlink()
            self._lines.unlink()
        self._about.unlink(missing_ok=True)
        others = list((self.directory / PICTURES).glob("*"))
        if others:
            raise ValueError(
                f"`workdir` is {str(self.directory)!r}, whose {PICTURES} hold files that "
                f"no prediction made, such as {text.printable(others[0].name)}; give "
                "another directory"
            )


def _export(config) -> tuple[export.Export, stopping.Rule, float]:
    """Load the export and choose its rule; say which argument is wrong."""
    if not config.export:
        raise ValueError("`config.export` is empty; give the directory of an export")
    try:
        found = export.load(config.export)
    except ValueError as error:
        raise ValueError(f"`config.export`: {error}") from None
    try:
        in_time = config.hold == MS
        budget, rule = found.rule(0 if in_time else config.budget)
    except ValueError as error:
        raise ValueError(f"`config.budget`: {error}") from None
    if in_time and not config.budget:
        raise ValueError(
            "`config.budget` is 0.0; with `config.hold=ms` allowed are milliseconds per "
            "image"
        )
    return found, rule, config.budget if in_time else budget


def _held(found, budget, milliseconds) -> control.Control:
    """Return the control of a budget, in milliseconds where these are known."""
    try:
        return found.control(budget, milliseconds)
    except ValueError as error:
        raise ValueError(f"`config.budget`: {error}") from None


def _exits(lines, found) -> list[int]:
    """Return the exits of images that are known; those without a finite answer go on."""
    last = {"exit": len(found.macs) - 1}
    answered = (last if line.get("error") == NOT_FINITE else line for line in lines)
    return [line["exit"] for line in answered if "exit" in line]


def warm(classifier: engine.Classifier) -> None:
    """Compile the programs of a classifier, so that no image is timed with that."""
    rule = classifier.rule
    classifier.rule = stopping.ThresholdRule([exit_table.NEVER] * rule.steps)
    size = max(1, classifier.image_size)
    classifier.classify(np.zeros((1, size, size, 3), np.uint8))
    classifier.rule = rule


def seen(found: export.Export) -> dict:
    """Return how an export sees photos, arguments of `photos.read`.

    `image_size` is 0 where they are taken as they are, however large.
    """
    about = found.metadata["preprocessing"]
    return {
        "image_size": 0 if protocol.on_host(found.method) else found.image_size,
        "resize": about["resize"],
        "whole": about.get("whole", False),  # older exports did not know it
    }


def classify(
    classifier: engine.Classifier,
    found: export.Export,
    paths: Iterable,
    max_pixels: int = photos.MAX_PIXELS,
    known: Sequence[int] = (),
) -> Iterator[Prediction]:
    """Classify image files, in their order; what cannot be read has no result.

    Args:
      classifier: of the export.
      found: the export.
      paths: of the files.
      max_pixels: of a file.
      known: as of `engine.Classifier.stream`.
    """
    options = seen(found) | {"max_pixels": max_pixels}
    under_way = collections.deque()  # (path, image, when it entered)

    def images():
        for path, image in photos.read_all(paths, **options):
            under_way.append((path, image, time.perf_counter()))
            if isinstance(image, np.ndarray):
                yield image

    def unreadable():
        while under_way and isinstance(under_way[0][1], ValueError):
            yield Prediction(*under_way.popleft()[:2])

    for result in classifier.stream(images(), known):
        now = time.perf_counter()
        yield from unreadable()
        path, image, entered = under_way.popleft()
        yield Prediction(path, image, result, 1000 * (now - entered))
    yield from unreadable()


def describe(found: export.Export, one: Prediction) -> dict:
    """Return what is said of a prediction, as plain data."""
    if one.result is None:
        return {"error": str(one.image)}
    if not math.isfinite(one.result.confidence):
        return {"error": NOT_FINITE}
    return {
        "class": found.classes[one.result.predicted],
        "confidence": round(one.result.confidence, 6),
        "exit": one.result.exit,
        "left_after": found.exits[one.result.exit],
        "macs": found.macs[one.result.exit],
        "time_ms": round(one.time_ms, 2),
    }


def line(about: dict) -> str:
    """Say what `describe` returned in a line."""
    return (
        f"{text.printable(about['class'])}, {about['confidence']:.1%}, left after "
        f"{about['left_after']}, {about['macs'] / 1e6:.0f} M multiply-adds, "
        f"{about['time_ms']:.1f} ms"
    )


def _make_draw(found, journal):
    """Return the function that draws one prediction and says where."""
    trace = protocol.make_trace(found.method)

    def draw(number, one):
        left = stopping.fixed(one.result.exit + 1, len(found.macs))
        figure = pictures.examples(
            trace(one.image[None], left),
            found.classes,
            found.exits,
            [text.printable(one.path.name)],
        )
        path = journal.picture(number, one.path)
        plots.save(figure, path, ["png"])
        return {"picture": f"{path}.png"}

    return draw


def _finish(found, journal, budget, costs, directory) -> dict:
    """Sum up what all hosts did; raise if files could not be read."""
    lines = journal.lines()
    failed = [line for line in lines if "error" in line]
    left = [line["exit"] for line in lines if "error" not in line]
    own = {
        "left": np.bincount(left, minlength=len(found.macs)),
        "failed": [
            f"{text.printable(line['file'])}: {line['error']}" for line in failed[:1]
        ],
        "unreadable": len(failed),
    }
    hosts = parallel.exchange(own)
    counts = np.sum([host["left"] for host in hosts], 0)
    unreadable = sum(host["unreadable"] for host in hosts)
    shares = counts / max(1, counts.sum())
    summary = {
        "images": int(counts.sum()),
        "unreadable": unreadable,
        f"budget_{[*costs][-1]}": budget,
        **{f"mean_{unit}": float(shares @ cost) for unit, cost in costs.items()},
        "exits": shares.tolist(),
    }
    where = ", ".join(
        f"{share:.0%} after {name}" for name, share in zip(found.exits, shares)
    )
    said = f"{budget:.3g} ms" if MS in costs else f"{budget / 1e6:.0f} M"
    logging.info(
        "%d images in %s: left %s; %.0f M multiply-adds on average, budget %s",
        *(summary["images"], directory, where),
        *(summary["mean_macs"] / 1e6, said),
    )
    if jax.process_index() == 0:
        files.write_sealed(directory / SUMMARY, summary)
    if unreadable:
        first = next(text for host in hosts for text in host["failed"])
        raise Unreadable(
            f"{unreadable} of {summary['images'] + unreadable} files could not be read, "
            f"see {directory if len(hosts) > 1 else journal.directory / PREDICTIONS}; "
            f"the first: {first}"
        )
    return summary
