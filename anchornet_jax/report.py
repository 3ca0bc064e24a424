"""The report: one HTML page with figures, tables and what they show.

The page stands alone: images are part of it, and it needs neither scripts nor a
network. Read from a directory are

`summary.json`, with fractions from 0 to 1 and multiply-adds:
    classes, data, patch_size, fuse; anchornet {accuracy, box_coverage, macs}; full_image
    {accuracy, macs} or null; anytime [{inputs, accuracy, random_patches_accuracy, macs}];
    budgeted [{budget_macs, mean_macs, accuracy, exits, expected_inputs}, and where known
    thresholds and binding]; seconds {stage: seconds}.
`examples.npz`, the arrays of `pictures.examples`.

    path = report.write("out")  # out/report.html, out/accuracy_cost.png, ...
"""

import base64
import html
import json
import os
import pathlib
import re
import string
import zipfile

import numpy as np

from anchornet_jax import pictures, plots, published, workdir

OPTIONAL = None  # in a schema: null is allowed
SUMMARY = {
    "classes": [str],
    "data": str,
    "patch_size": int,
    "fuse": str,
    "anchornet": {"accuracy": float, "box_coverage": (float, OPTIONAL), "macs": float},
    "full_image": ({"accuracy": float, "macs": float}, OPTIONAL),
    "anytime": [
        {
            "inputs": int,
            "accuracy": float,
            "random_patches_accuracy": float,
            "macs": float,
        }
    ],
    "budgeted": [
        {
            "budget_macs": float,
            "mean_macs": float,
            "accuracy": float,
            "exits": [float],
            "expected_inputs": float,
        }
    ],
    "seconds": {},
}
EXAMPLES = {  # axis letters of the package; I and J are the heatmap's rows and columns
    "image": "BHW3",
    "heatmap": "BIJ",
    "corners": "BK2",
    "valid": "BK",
    "label": "B",
    "predicted": "BE",
    "confidence": "BE",
    "exit": "B",
    "patch_size": "",
}
