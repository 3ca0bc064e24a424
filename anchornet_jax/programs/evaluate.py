"""Evaluation of the whole method: exit tables, curves and pictures of one data set.

Localizing Semantic Patches (2022), Sec. 4: anytime prediction (Fig. 6), budgeted batch
classification (Fig. 5), random patches (Table 3), the number of inputs E(t) and the
distribution over exits (Fig. 7), and milliseconds. Thresholds are fitted on the
calibration split and scored on the test split, never on the images they were fitted to.
"""

import jax
import numpy as np
from absl import logging

from anchornet_jax.data import collect, loading
from anchornet_jax.inference import exit_table, export, fitting, stopping, timing
from anchornet_jax.methods import anchornet, views
from anchornet_jax.models import multiply_adds
from anchornet_jax.runtime import files, networks, parallel, workdir

EXAMPLES = 12  # first images of the test split, for the pictures


def evaluate(config, directory) -> dict:
    """Evaluate trained networks as the config says.

    Writes `calibration.npz`, `test.npz` and `random.npz` (exit tables), `examples.npz`
    and `summary.json`.

    Returns:
      What `summary.json` holds.

    Raises:
      ValueError: for a config that cannot run, before anything is compiled or written.
    """
    parallel.local_batch(config.batch_size)
    source = loading.prepare(**config.data)
    for split in (config.calibration_split, config.test_split):
        source.examples(split)
    method = export.assemble(config, source.image_size)
    path = config.networks.full_image
    whole = networks.load(path) if path else None
    timing.check(**config.timing)
    macs = method.macs(source.image_size)
    directory = workdir.claim(directory, config.to_dict())

    tables = {}
    for name, split in (
        ("calibration", config.calibration_split),
        ("test", config.test_split),
    ):
        found = _run(config, source, split, method, random=name == "test")
        tables[name] = _table(found, macs)
    random = _table(found, macs, "random_")

    curve = _budgeted(tables, config.budgets, config.rule)
    anytime = _anytime(tables["test"], random)
    full = _full_image(config, source, whole)
    point = _operating_point(curve, full)
    milliseconds = None
    if config.timing.images:
        milliseconds = _time(config, source, method, curve, anytime, full, whole)
    summary = {
        "data": config.data.name,
        "classes": source.classes,
        "patch_size": method.patch_size,
        "fuse": config.fuse,
        "anchornet": _anchornet(found, method, source.image_size),
        "full_image": full,
        "anytime": anytime,
        "budgeted": curve,
        "exit_time_ms": milliseconds,
    }
    if jax.process_index() == 0:
        for name, table in {**tables, "random": random}.items():
            table.save(directory / f"{name}.npz")
        _save_examples(directory, found, tables["test"], point, method.patch_size)
        files.write_json(directory / "summary.json", summary)
    return summary


def _run(config, source, split, method, *, random) -> dict[str, np.ndarray]:
    """Run every image of a split through every step; labels and boxes go along."""
    step = parallel.predict_step(
        anchornet.make_table_step(method, random=random, seed=config.seed)
    )
    return collect.collect(
        step,
        parallel.replicate(method.variables()),
        source,
        split,
        batch_size=config.batch_size,
        images=EXAMPLES,
    )


def _table(found, macs, prefix="") -> exit_table.ExitTable:
    return exit_table.ExitTable(
        confidence=found[f"{prefix}confidence"],
        predicted=found[f"{prefix}predicted"],
        label=found["label"],
        cost=np.asarray(macs, float),
        unit="multiply-adds",
    )


def _budgeted(tables, points: int, rule: str) -> list[dict]:
    """Fit the rule to budgets on the calibration split, score it on the test split.

    Ends with the first budget that the rule does not use up (`binding` is False).
    """
    cost = tables["calibration"].cost
    budgets = np.geomspace(cost[0], cost[-1], points + 1)[1:]
    names = {"budget": "budget_macs", "mean_cost": "mean_macs", "shares": "exits"}
    rows = []
    for found in fitting.curve(tables["calibration"], tables["test"], budgets, rule):
        row = {names.get(key, key): value for key, value in found.items()}
        rows.append({**row, "thresholds": row["rule"].get("thresholds")})
        if not row["binding"]:
            break
    return rows


def _anytime(table, random) -> list[dict]:
    """Let every image leave after the same number of inputs (2022, Fig. 6)."""
    return [
        {
            "inputs": row["inputs"],
            "accuracy": row["accuracy"],
            "random_patches_accuracy": other["accuracy"],
            "macs": row["cost"],
        }
        for row, other in zip(exit_table.anytime(table), exit_table.anytime(random))
    ]


def _full_image(config, source, network) -> dict | None:
    """Score the network that sees the whole image: the reference point."""
    if network is None:
        return None
    step = parallel.predict_step(
        lambda variables, batch: {
            "class": network.model.apply(variables, views.normalise(batch["image"]))[
                0
            ].argmax(-1)
        }
    )
    found = collect.collect(
        step,
        parallel.replicate(network.variables),
        source,
        config.test_split,
        batch_size=config.batch_size,
    )
    return {
        "accuracy": float((found["class"] == found["label"]).mean()),
        "macs": multiply_adds.model_macs(network.model, source.image_size),
    }


def _time(config, source, method, curve, anytime, full, whole) -> list[float]:
    """Add milliseconds to the rows; return what leaving at each exit costs."""
    images, wanted = [], config.timing.images
    for batch in loading.evaluation(
        source, config.test_split, batch_size=config.batch_size
    ):
        images.extend(parallel.gather(batch["image"])[parallel.gather(batch["mask"])])
        if len(images) >= wanted:
            break
    rules = [stopping.from_json(row["rule"]) for row in curve]
    budgeted, fixed, full_time, cost = timing.measure(
        method,
        np.array(images[:wanted]),
        config.timing.batch_size,
        rules,
        whole,
    )
    for row, value in zip(curve, budgeted):
        row["mean_time_ms"] = value
    for row, value in zip(anytime, fixed):
        row["time_ms"] = value
    if full:
        full["time_ms"] = full_time
    return cost


def _anchornet(found, method, image_size) -> dict:
    """Score AnchorNet alone: its classes, and whether its best patch holds the object.

    `box_coverage` is the mean share of the object's box inside the best patch, None
    where the data has no boxes.
    """
    coverage = None
    if "box" in found:
        corner, box = found["corners"][:, 0], found["box"]  # [n, 2], [n, 4]
        low = np.maximum(corner, box[:, :2])
        high = np.minimum(corner + found["size"][:, None], box[:, 2:])
        inside = np.clip(high - low, 0, None).prod(-1)
        coverage = float((inside / (box[:, 2:] - box[:, :2]).prod(-1)).mean())
    return {
        "accuracy": float((found["anchornet"] == found["label"]).mean()),
        "box_coverage": coverage,
        "macs": multiply_adds.model_macs(method.anchornet.model, image_size),
    }


def _operating_point(curve, full) -> dict:
    """Choose the point to draw: the cheapest within one point of the full image."""
    goal = full["accuracy"] - 0.01 if full else max(r["accuracy"] for r in curve)
    reached = [row for row in curve if row["accuracy"] >= goal]
    return min(reached, key=lambda row: row["mean_macs"]) if reached else curve[-1]


def _save_examples(directory, found, table, point, patch_size) -> None:
    rule = stopping.from_json(point["rule"])
    first = slice(0, EXAMPLES)
    names = ("heatmap", "corners", "valid", "size", "label", "predicted", "confidence")
    names += ("box",)
    arrays = {name: found[name][first] for name in names if name in found}
    files.write_npz(
        directory / "examples.npz",
        image=found["image"][first],
        exit=rule.exits(table.confidence[first]),
        patch_size=patch_size,
        **arrays,
    )
    logging.info(
        "operating point: %.1f %% at %.1f M multiply-adds",
        100 * point["accuracy"],
        point["mean_macs"] / 1e6,
    )
