"""Evaluation of a method: exit tables, curves and pictures of one data set.

Localizing Semantic Patches (2022), Sec. 4: anytime prediction (Fig. 6), budgeted batch
classification (Fig. 5), random patches (Table 3), the number of inputs E(t) and the
distribution over exits (Fig. 7), and milliseconds. Rules are fitted on the calibration
split and scored on the test split, never on the images they were fitted to. What the
method is compared with are methods as well, the references.
"""

import dataclasses

import jax
import numpy as np
from absl import logging

from anchornet_jax.data import collect, loading
from anchornet_jax.inference import (
    exit_table,
    export,
    fitting,
    fusion,
    results,
    stopping,
    timing,
)
from anchornet_jax.inference.results import Evaluation, Point, Reference
from anchornet_jax.methods import method as protocol
from anchornet_jax.methods import registry
from anchornet_jax.runtime import files, parallel, workdir

FUSIONS = ("sum", FITTED := "fitted")  # of a method's sources
EXAMPLES = 12  # first images of the test split, for the pictures
SHOWN_PIXELS = 2**25  # of all of them, if they are of any sizes
SHOWN = ("predicted", "confidence", "boxes", "heatmap", "extent", "label", "box")


def evaluate(config, directory) -> dict:
    """Evaluate trained networks as the config says.

    Writes `calibration.npz` and `test.npz` (exit tables), `examples.npz` and
    `summary.json`.

    Returns:
      What `summary.json` holds, see `results.Evaluation`.

    Raises:
      ValueError: for a config that cannot run, before anything is compiled or written.
    """
    parallel.local_batch(config.batch_size)
    source = loading.prepare(**config.data)
    for split in (config.calibration_split, config.test_split):
        source.examples(split)
    size = source.image_size
    method = export.assemble(config.method, size)
    references = {
        name.replace("_", " "): export.assemble(part, size)
        for name, part in config.references.items()
    }
    timing.check(**config.timing)
    if config.fusion == FITTED and not method.sources:
        raise ValueError(
            f"`config.fusion` is {FITTED!r}; {registry.name(method)} has no sum to weigh"
        )
    candidates = _candidates(config, method, size)
    directory = workdir.claim(directory, config.to_dict())

    tables = {}
    if candidates:
        method, tables["calibration"] = _choose(config, source, method, candidates)
    if config.fusion == FITTED:
        method, tables = _fused(config, source, method), {}
    run = lambda method, split: _run(config, source, split, method)
    if not tables:
        found = run(method, config.calibration_split)
        tables["calibration"] = _table(found, method, size)
    found = run(method, config.test_split)
    tables["test"] = _table(found, method, size)
    others = {
        name: _scored(run(other, config.test_split), other, size)
        for name, other in references.items()
    }
    summary = Evaluation(
        data=config.data.name,
        classes=source.classes,
        method={
            "name": registry.name(method),
            **method.arguments,
            "networks": export.digests(method),
        },
        exits=protocol.exit_names(method.steps),
        anytime=_scored(found, method, size),
        budgeted=_budgeted(tables, config.budgets, config.rule),
        references={
            name: Reference(protocol.exit_names(references[name].steps), points)
            for name, points in others.items()
        },
        box_coverage=_box_coverage(found),
        images=len(tables["test"].confidence),
        reliability=results.reliability(
            tables["test"].confidence, tables["test"].correct
        ),
    )
    if config.timing.images:
        summary = _timed(config, source, method, references, summary)
    if jax.process_index() == 0:
        for name, table in tables.items():
            table.save(directory / f"{name}.npz")
        _save_examples(directory, found, tables["test"], summary)
        files.write_sealed(directory / "summary.json", summary.to_json())
    return summary.to_json()


def _run(config, source, split, method) -> dict[str, np.ndarray]:
    """Run every image of a split through every step; labels and boxes go along."""
    return collect.collect(
        protocol.make_table(method, features=True),
        parallel.replicate(protocol.variables(method)),
        source,
        split,
        batch_size=config.batch_size,
        images=EXAMPLES,
    )


def _candidates(config, method, size) -> list[dict]:
    """Return the inputs and thresholds to choose from, none where nothing is asked for.

    Raises:
      ValueError: for a method that has no such choice, or values that it refuses.
    """
    inputs, thresholds = config.choice.inputs, config.choice.iou_threshold
    if not inputs and not thresholds:
        return []
    if not getattr(method, "chosen", 0):
        raise ValueError(
            f"`config.choice` asks for inputs or thresholds; {registry.name(method)} has "
            "no regions that are chosen so"
        )
    cheapest = protocol.costs(method, size)[0]
    if 0 < config.choice.budget < cheapest:
        raise ValueError(
            f"`config.choice.budget` is {config.choice.budget}; the cheapest exit costs "
            f"{cheapest} multiply-adds"
        )
    found = [
        {"inputs": count, "iou_threshold": threshold}
        for threshold in thresholds or [method.iou_threshold]
        for count in inputs or [method.inputs]
    ]
    for one in found:
        try:
            protocol.check_images(dataclasses.replace(method, **one), size)
        except ValueError as error:
            raise ValueError(f"`config.choice` holds {one}: {error}") from None
    return found


def _choose(config, source, method, candidates):
    """Return the method of the best candidate, and its table of the calibration split.

    The networks run once on the glance and the whole image, and for each threshold on
    the patches of as many inputs as any candidate has; with fewer, exits are left out.
    """
    size = source.image_size
    thresholds = list(dict.fromkeys(one["iou_threshold"] for one in candidates))
    most = max(one["inputs"] for one in candidates)
    whole = dataclasses.replace(method, inputs=most)
    found = collect.collect(
        protocol.make_tables(whole, thresholds, features=True),
        parallel.replicate(protocol.variables(whole)),
        source,
        config.calibration_split,
        batch_size=config.batch_size,
    )
    tables = {}
    for one in candidates:
        number = thresholds.index(one["iou_threshold"])
        own = {
            k: found[f"{number} {k}"] for k in ("confidence", "predicted", "features")
        }
        table = _table(own | {"label": found["label"]}, whole, size)
        exits = len(whole.steps) - (most - one["inputs"])
        tables[tuple(one.items())] = table.select(exits=exits)
    cost = protocol.costs(whole, size)
    budgets = [config.choice.budget or _budgets(cost, config.budgets)]
    chosen = fitting.best(tables, np.ravel(budgets), config.rule)
    logging.info("of %d candidates chosen: %s", len(candidates), dict(chosen))
    return dataclasses.replace(method, **dict(chosen)), tables[chosen]


def _budgets(cost, points: int) -> np.ndarray:
    """Return the budgets of a curve between the first exit's cost and the last's."""
    return np.geomspace(cost[0], cost[-1], points + 1)[1:]


def _fused(config, source, method):
    """Return the method with weights that make the calibration labels most likely."""
    found = collect.collect(
        protocol.make_table(method, logits=True),
        parallel.replicate(protocol.variables(method)),
        source,
        config.calibration_split,
        batch_size=config.batch_size,
    )
    weights = fusion.fit(found["logits"], found["label"], method.sources)
    return dataclasses.replace(method, weights=weights)


def _table(found, method, image_size) -> exit_table.ExitTable:
    return exit_table.ExitTable(
        confidence=found["confidence"],
        predicted=found["predicted"],
        label=found["label"],
        cost=np.asarray(protocol.costs(method, image_size), float),
        unit="multiply-adds",
        features=found["features"],
        feature_names=protocol.features(method),
    )


def _budgeted(tables, points: int, rule: str) -> list[Point]:
    """Fit the rule to budgets on the calibration split, score it on the test split.

    Ends with the first budget that the rule does not use up (`binding` is False).
    """
    cost = tables["calibration"].cost
    if len(cost) == 1:  # one exit: nothing to decide
        return []
    budgets = _budgets(cost, points)
    found = fitting.curve(tables["calibration"], tables["test"], budgets, rule)
    unspent = next((i for i, p in enumerate(found) if not p.binding), len(found))
    return found[: unspent + 1]


def _scored(found, method, image_size) -> list[Point]:
    """Let every image leave at the same exit (2022, Fig. 6)."""
    accuracy = (found["predicted"] == found["label"][:, None]).mean(0).tolist()
    cost = map(float, protocol.costs(method, image_size))
    shares = np.eye(len(accuracy)).tolist()
    return [Point(*row) for row in zip(accuracy, cost, shares)]


def _timed(config, source, method, references, summary) -> Evaluation:
    """Add milliseconds to the points, and what leaving at each exit costs.

    Of the references those with a single exit are measured.
    """
    images = loading.first_images(
        source, config.test_split, config.timing.images, config.batch_size
    )
    size = config.timing.batch_size
    rules = [stopping.from_json(point.rule) for point in summary.budgeted]
    own = timing.prepare(method, images, size, rules)
    ways = {"budgeted": (own, rules), "anytime": (own, timing.fixed(method))}
    for name, other in references.items():
        if len(other.steps) == 1:
            classifier = timing.prepare(other, images, size)
            ways[name] = (classifier, timing.fixed(other))
    times = timing.measure(ways, images)
    peaks = {
        name: classifier.peak_bytes()
        for name, (classifier, _) in ways.items()
        if name != "budgeted"  # the same networks as `anytime`
    }
    return dataclasses.replace(
        summary,
        budgeted=results.with_time(summary.budgeted, times["budgeted"]),
        anytime=results.with_time(summary.anytime, times["anytime"]),
        references={
            name: dataclasses.replace(
                found,
                anytime=results.with_time(found.anytime, times.get(name)),
                peak_bytes=peaks.get(name),
            )
            for name, found in summary.references.items()
        },
        exit_time_ms=own.milliseconds().tolist(),
        peak_bytes=peaks["anytime"],
        device=jax.local_devices()[0].device_kind,
    )


def _box_coverage(found) -> float | None:
    """Return the mean share of the object's box inside the first chosen region.

    Of the images whose box is known, and is not all cut off with the borders. None where
    there are none or the method chooses nothing; what is seen whole, as at the glance, is
    not chosen.
    """
    if "box" not in found or "boxes" not in found:
        return None
    regions, box = found["boxes"], found["box"]  # [n, T, 4], [n, 4]
    chosen = (regions != regions[:, :1]).any(-1) & (regions[..., 2] > regions[..., 0])
    area = (box[:, 2:] - box[:, :2]).prod(-1)
    known = (box[:, 0] >= 0) & (area > 0) & chosen.any(1)
    if not known.any():
        return None
    first = regions[np.arange(len(box)), chosen.argmax(1)]
    region, box = first[known], box[known]  # [n, 4]
    low = np.maximum(region[:, :2], box[:, :2])
    high = np.minimum(region[:, 2:], box[:, 2:])
    inside = np.clip(high - low, 0, None).prod(-1)
    return float((inside / area[known]).mean())


def operating_point(summary: Evaluation) -> Point:
    """Choose the point to draw: the cheapest within one point of the best reference."""
    points = summary.budgeted or summary.anytime
    reference = summary.reference()
    goal = max(point.accuracy for point in points)
    if reference is not None:
        goal = reference[1].accuracy - 0.01
    reached = [point for point in points if point.accuracy >= goal]
    return min(reached, key=lambda point: point.cost) if reached else points[-1]


def _save_examples(directory, found, table, summary) -> None:
    point, first = operating_point(summary), slice(0, EXAMPLES)
    if point.rule is None:
        exits = np.full(len(found["image"][first]), np.argmax(point.exits))
    else:
        shown = table.select(first)
        exits = stopping.from_json(point.rule).exits(shown.confidence, shown.seen)
    images = _of_one_shape(found["image"][first])
    files.write_npz(
        directory / "examples.npz",
        image=images,
        exit=exits[: len(images)],
        **{name: found[name][: len(images)] for name in SHOWN if name in found},
    )
    logging.info(
        "operating point: %.1f %% at %.1f M multiply-adds, %s",
        *(100 * point.accuracy, point.cost / 1e6),
        point.decided_by or "one exit",
    )


def _of_one_shape(images: np.ndarray) -> np.ndarray:
    """Return as many images of any sizes as `SHOWN_PIXELS` allow, padded to one shape."""
    if images.ndim > 1:
        return images
    for count in range(len(images), 0, -1):
        sides = np.max([image.shape for image in images[:count]], 0)
        if count * np.prod(sides[:2]) <= SHOWN_PIXELS or count == 1:
            break
    padded = np.zeros((count, *sides), np.uint8)
    for whole, image in zip(padded, images):
        whole[: image.shape[0], : image.shape[1]] = image
    return padded
