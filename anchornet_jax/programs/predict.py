"""Images of one's own through an export: a line, a JSON line and a picture each.

The images run through the early-exit `engine`, in their order, while
threads decode the next ones. Milliseconds are those that an image spends in the
engine; at a batch size above 1 they include waiting for others.

    python main.py --config=configs/predict.py --config.export=EXPORT --config.images=…
"""

import collections
import json
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from anchornet_jax.data import photos
from anchornet_jax.figures import pictures, plots
from anchornet_jax.inference import engine, exit_table, export, stopping
from anchornet_jax.methods import method as protocol
from anchornet_jax.runtime import files

PREDICTIONS, PICTURES = "predictions.jsonl", "pictures"
EVERY_SECONDS = 10  # a line on progress


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

    Prints a line per image; writes `predictions.jsonl`, a line per image too, and,
    with `config.pictures`, `pictures`. Those of an earlier run are replaced. Lines
    hold `file`, `class`, `confidence`, `exit` (0-based), `macs`, `time_ms` and
    `picture`, or `file` and `error`.

    Returns:
      `images`, `unreadable`, `budget_macs`, `mean_macs` and `exits`, the share of the
      images that left at each.

    Raises:
      ValueError: for a config that cannot run, before anything is written.
      Unreadable: at the end, if files could not be read.
    """
    found, rule, budget = _export(config)
    try:
        paths = photos.find(config.images)
    except ValueError as error:
        raise ValueError(f"`config.images`: {error}") from None
    classifier = engine.Classifier(
        found.method,
        rule,
        image_size=found.image_size,
        batch_size=config.batch_size,
        in_flight=None if config.batch_size > 1 else config.batch_size,
    )
    directory = _clear(directory)
    warm(classifier)
    draw = _make_draw(found, rule, directory) if config.pictures else lambda *_: {}
    report = _make_report(len(paths))
    left, failed = [], []
    with files.whole(directory / PREDICTIONS) as file:
        for number, one in enumerate(classify(classifier, found, paths), 1):
            about = {"file": str(one.path), **describe(found, one)}
            if one.result is None:
                failed.append(one)
                logging.error("%s: %s", photos.name(one.path), one.image)
            else:
                left.append(one.result.exit)
                about |= draw(number, one)
                print(f"{photos.name(one.path)}: {line(about)}", flush=True)
            file.write(json.dumps(about) + "\n")
            report(number)
    return _finish(found, directory, budget, left, failed)


def _export(config) -> tuple[export.Export, stopping.Rule, float]:
    """Load the export and choose its rule; say which argument is wrong."""
    if jax.process_count() > 1:
        raise ValueError("`config.program` is 'predict', which runs on one host")
    if not config.export:
        raise ValueError("`config.export` is empty; give the directory of an export")
    try:
        found = export.load(config.export)
    except ValueError as error:
        raise ValueError(f"`config.export`: {error}") from None
    try:
        budget, rule = found.rule(config.budget)
    except ValueError as error:
        raise ValueError(f"`config.budget`: {error}") from None
    return found, rule, budget


def _clear(directory) -> pathlib.Path:
    """Make the directory, without what an earlier prediction wrote there."""
    path = pathlib.Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {item.name for item in path.iterdir() if item.name[0] != "."}
        if names - {PREDICTIONS, PICTURES}:
            raise ValueError(
                f"`workdir` is {str(path)!r}, which holds other files; give a new or "
                "empty directory, or that of an earlier prediction to be replaced"
            )
        (path / PREDICTIONS).unlink(missing_ok=True)
        shutil.rmtree(path / PICTURES, ignore_errors=True)
        (path / PICTURES).mkdir()
    except OSError as error:
        raise ValueError(f"`workdir` is {str(path)!r}: {error}") from error
    return path


def warm(classifier: engine.Classifier) -> None:
    """Compile the programs of a classifier, so that no image is timed with that."""
    rule = classifier.rule
    classifier.rule = stopping.ThresholdRule([exit_table.NEVER] * rule.steps)
    size = classifier.image_size
    classifier.classify(np.zeros((1, size, size, 3), np.uint8))
    classifier.rule = rule


def classify(
    classifier: engine.Classifier, found: export.Export, paths: Iterable
) -> Iterator[Prediction]:
    """Classify image files, in their order; what cannot be read has no result."""
    size, resize = found.image_size, found.metadata["preprocessing"]["resize"]
    under_way = collections.deque()  # (path, image, when it entered)

    def images():
        for path, image in photos.read_all(paths, image_size=size, resize=resize):
            under_way.append((path, image, time.perf_counter()))
            if isinstance(image, np.ndarray):
                yield image

    def unreadable():
        while under_way and isinstance(under_way[0][1], ValueError):
            yield Prediction(*under_way.popleft()[:2])

    for result in classifier.stream(images()):
        now = time.perf_counter()
        yield from unreadable()
        path, image, entered = under_way.popleft()
        yield Prediction(path, image, result, 1000 * (now - entered))
    yield from unreadable()


def describe(found: export.Export, one: Prediction) -> dict:
    """Return what is said of a prediction, as plain data."""
    if one.result is None:
        return {"error": str(one.image)}
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
        f"{about['class']}, {about['confidence']:.1%}, left after "
        f"{about['left_after']}, {about['macs'] / 1e6:.0f} M multiply-adds, "
        f"{about['time_ms']:.1f} ms"
    )


def _make_draw(found, rule, directory):
    """Return the function that draws one prediction and says where."""
    trace = protocol.make_trace(found.method)

    def draw(number, one):
        figure = pictures.examples(
            trace(one.image[None], rule),
            found.classes,
            found.exits,
            [photos.name(one.path.name)],
        )
        path = directory / PICTURES / f"{number:05d}_{one.path.stem[:40]}"
        plots.save(figure, path, ["png"])
        return {"picture": f"{path}.png"}

    return draw


def _make_report(total: int):
    """Return the function that logs how far it is, and how long it still takes."""
    begun = last = time.monotonic()

    def report(done):
        nonlocal last
        now = time.monotonic()
        if now - last > EVERY_SECONDS:
            last, left = now, (now - begun) / done * (total - done)
            logging.info("%d of %d files, %.0f s left", done, total, left)

    return report


def _finish(found, directory, budget, left, failed) -> dict:
    """Sum up; raise if files could not be read."""
    shares = np.bincount(left, minlength=len(found.macs)) / max(1, len(left))
    summary = {
        "images": len(left),
        "unreadable": len(failed),
        "budget_macs": budget,
        "mean_macs": float(shares @ found.macs),
        "exits": shares.tolist(),
    }
    where = ", ".join(
        f"{share:.0%} after {name}" for name, share in zip(found.exits, shares)
    )
    logging.info(
        "%d images in %s: left %s; %.0f M multiply-adds on average, budget %.0f M",
        *(len(left), directory, where, summary["mean_macs"] / 1e6, budget / 1e6),
    )
    if failed:
        raise Unreadable(
            f"{len(failed)} of {len(left) + len(failed)} files could not be read, see "
            f"{directory / PREDICTIONS}; the first: {photos.name(failed[0].path)}: "
            f"{failed[0].image}"
        )
    return summary
