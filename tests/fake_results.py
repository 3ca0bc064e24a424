"""What an evaluation would leave, made up: three classes, three exits, four images."""

import numpy as np

from anchornet_jax.inference.results import Evaluation, Point, Reference
from anchornet_jax.runtime import files

SIZE, PATCH, STRIDE, GRID = 48, 20, 4, 8  # (48 - 20) / 4 + 1 = 8
EXITS = ["glance", "look", "patch 2"]
ABSENT = [-1] * 4


def anytime(*rows):
    """Return a point per row of accuracy, cost and milliseconds, at which all leave."""
    return [
        Point(accuracy, cost, exits.tolist(), time_ms=time_ms)
        for (accuracy, cost, time_ms), exits in zip(rows, np.eye(len(rows)))
    ]


def summary():
    """Return a fresh evaluation."""
    budgeted = [
        Point(
            accuracy,
            budget - 1e6,
            exits,
            time_ms=budget / 10e6 + 0.25,
            budget=budget,
            binding=True,
            rule={"rule": "thresholds", "thresholds": [0.75, 2.0]},
        )
        for budget, accuracy, exits in (
            (30e6, 0.88, [0.25, 0.25, 0.5]),
            (20e6, 0.82, [0.5, 0.25, 0.25]),
        )
    ]
    return Evaluation(
        data="plates",
        classes=["cat", "$dog_1$", "<b>owl & co"],
        method={"name": "anchornet", "fuse": "logits", "networks": {"glance": "0a1b"}},
        exits=list(EXITS),
        anytime=anytime((0.6, 10e6, 1.0), (0.8, 30e6, 4.0), (0.9, 40e6, 5.0)),
        budgeted=budgeted,
        references={
            "full image": Reference(["whole image"], anytime((0.9, 100e6, 10.0))),
            "random patches": Reference(
                list(EXITS),
                anytime((0.6, 10e6, None), (0.65, 30e6, None), (0.7, 40e6, None)),
            ),
        },
        box_coverage=0.93,
        exit_time_ms=[0.9, 3.9, 4.9],
        device="cpu",
        seconds={"data": 40.1, "anchornet": 240.0},
    )


def single():
    """Return a fresh evaluation of a method with one exit: there is nothing to decide."""
    return Evaluation(
        data="plates",
        classes=["cat", "$dog_1$", "<b>owl & co"],
        method={"name": "static", "input_size": 0},
        exits=["whole image"],
        anytime=anytime((0.9, 100e6, None)),
        budgeted=[],
    )


def arrays():
    """Return fresh examples; patch 2 of the last image does not exist."""
    rng = np.random.default_rng(0)
    corners = [
        [(4, 8), (28, 0)],
        [(0, 0), (24, 24)],
        [(8, 8), (0, 28)],
        [(12, 4), None],
    ]
    boxes = [
        [[0, 0, SIZE, SIZE]]
        + [[y, x, y + PATCH, x + PATCH] for y, x in filter(None, two)]
        + [ABSENT] * two.count(None)
        for two in corners
    ]
    first = (PATCH - STRIDE) / 2  # px, where the cell of the first location begins
    return {
        "image": rng.integers(256, size=(4, SIZE, SIZE, 3), dtype=np.uint8),
        "heatmap": rng.normal(size=(4, GRID, GRID)).astype(np.float32),
        "extent": np.tile(
            np.float32([first, first, first + GRID * STRIDE, first + GRID * STRIDE]),
            (4, 1),
        ),
        "boxes": np.array(boxes, np.int32),
        "label": np.array([0, 1, 2, 1]),
        "predicted": np.array([[0, 0, 0], [2, 1, 1], [0, 1, 2], [0, 0, 0]]),
        "confidence": np.linspace(0.5, 0.94, 12).reshape(4, 3),
        "exit": np.array([0, 1, 2, 1]),
        "box": np.array([[6, 10, 20, 24]] * 4),
    }


def write(directory, summary, arrays):
    """Write both files as an evaluation does; the summary may be what JSON holds."""
    plain = summary.to_json() if isinstance(summary, Evaluation) else summary
    files.write_sealed(directory / "summary.json", plain)
    np.savez(directory / "examples.npz", **arrays)
