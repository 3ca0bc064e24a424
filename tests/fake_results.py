"""What an evaluation would leave, made up: three classes, two patches, four images."""

import json

import numpy as np

SIZE, PATCH, STRIDE, GRID = 48, 20, 4, 8  # (48 - 20) / 4 + 1 = 8


def summary():
    """Return a fresh summary."""
    rows = [
        (1, 0.6, 0.6, 10e6, 1.0),
        (2, 0.8, 0.65, 30e6, 4.0),
        (3, 0.9, 0.7, 40e6, 5.0),
    ]
    names = ("inputs", "accuracy", "random_patches_accuracy", "macs", "time_ms")
    budgeted = [
        {
            "budget_macs": budget,
            "mean_macs": budget - 1e6,
            "mean_time_ms": budget / 10e6 + 0.25,
            "accuracy": accuracy,
            "thresholds": [0.75, 2.0],
            "exits": exits,
            "expected_inputs": float(np.dot(exits, [1, 2, 3])),
            "binding": True,
        }
        for budget, accuracy, exits in (
            (30e6, 0.88, [0.25, 0.25, 0.5]),
            (20e6, 0.82, [0.5, 0.25, 0.25]),
        )
    ]
    return {
        "classes": ["cat", "$dog_1$", "<b>owl & co"],
        "data": "plates",
        "patch_size": PATCH,
        "fuse": "logits",
        "anchornet": {"accuracy": 0.84, "box_coverage": 0.93, "macs": 6e6},
        "full_image": {"accuracy": 0.9, "macs": 100e6, "time_ms": 10.0},
        "anytime": [dict(zip(names, row)) for row in rows],
        "budgeted": budgeted,
        "exit_time_ms": [0.9, 3.9, 4.9],
        "seconds": {"data": 40.1, "anchornet": 240.0},
    }


def arrays():
    """Return fresh examples; patch 2 of the last image does not exist."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(256, size=(4, SIZE, SIZE, 3), dtype=np.uint8),
        "heatmap": rng.normal(size=(4, GRID, GRID)).astype(np.float32),
        "corners": np.array(
            [
                [[4, 8], [28, 0]],
                [[0, 0], [24, 24]],
                [[8, 8], [0, 28]],
                [[12, 4], [0, 0]],
            ],
            np.int32,
        ),
        "valid": np.array([[True, True], [True, True], [True, True], [True, False]]),
        "label": np.array([0, 1, 2, 1]),
        "predicted": np.array([[0, 0, 0], [2, 1, 1], [0, 1, 2], [0, 0, 0]]),
        "confidence": np.linspace(0.5, 0.94, 12).reshape(4, 3),
        "exit": np.array([0, 1, 2, 1]),
        "box": np.array([[6, 10, 20, 24]] * 4),
        "patch_size": np.array(PATCH),
    }


def write(directory, summary, arrays):
    """Write both files as an evaluation does."""
    (directory / "summary.json").write_text(json.dumps(summary))
    np.savez(directory / "examples.npz", **arrays)
