"""What each key of a config may be, looked at before anything else is done.

A value that cannot mean anything, such as a negative number of epochs, would otherwise be
found hours later, or never. What only the data or the networks can tell, such as whether
a split exists, is checked where they are opened.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from anchornet_jax import models
from anchornet_jax.data import datasets, loading
from anchornet_jax.inference import fitting
from anchornet_jax.methods import localize, patches, registry, views
from anchornet_jax.programs import evaluate, predict
from anchornet_jax.runtime import pretrained
from anchornet_jax.training import optimizers, train

LARGEST = 16_384  # px, of an image's side


class Allowed(NamedTuple):
    """What a key may be: in words, and as a test of a value."""

    words: str
    fits: Callable


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and math.isfinite(value)


def whole(low: int, high: int | None = None) -> Allowed:
    """Allow whole numbers."""
    words = f"whole numbers from {low}" + ("" if high is None else f" to {high}")
    return Allowed(
        words,
        lambda v: _is_whole(v) and low <= v and (high is None or v <= high),
    )


def number(low: float, high: float = math.inf, *, ends: str = "[]") -> Allowed:
    """Allow finite numbers; an end in a round bracket is left out."""
    words = f"finite numbers {'from' if ends[0] == '[' else 'above'} {low:g}"
    if high < math.inf:
        words += f" {'to' if ends[1] == ']' else 'to below'} {high:g}"

    def fits(value):
        if not _is_number(value):
            return False
        above = value >= low if ends[0] == "[" else value > low
        return above and (value <= high if ends[1] == "]" else value < high)

    return Allowed(words, fits)


def one_of(*names) -> Allowed:
    """Allow some values."""
    known = ", ".join(map(repr, names))
    return Allowed(known, lambda v: any(v == name for name in names))


def some(allowed: Allowed) -> Allowed:
    """Allow a sequence of values, all different, each of which is allowed; or none."""

    def fits(values):
        known = isinstance(values, (tuple, list))
        return (
            known and len({*values}) == len(values) and all(map(allowed.fits, values))
        )

    return Allowed(f"different {allowed.words}, or none", fits)


def _is_rising(shares) -> bool:
    inside = all(_is_number(share) and 0 < share < 1 for share in shares)
    return inside and list(shares) == sorted(set(shares))


TEXT = Allowed("text", lambda v: isinstance(v, str))
TRUTH = Allowed("True and False", lambda v: isinstance(v, bool))
SPLIT = Allowed(  # the empty one: `_check_splits`
    "a split's name", lambda v: isinstance(v, str) and (not v or bool(v.strip()))
)
KEYS = {
    "program": TEXT,  # `pipeline.run` knows them
    "seed": whole(0, 2**32 - 1),
    "data.name": Allowed("a data set's name", lambda v: isinstance(v, str) and bool(v)),
    "data.data_dir": TEXT,
    "data.manual_dir": TEXT,
    "data.image_size": whole(0, LARGEST),
    "data.augment": one_of(*loading.AUGMENTATIONS),
    "data.smallest_area": number(0, 1, ends="(]"),
    "data.flip": TRUTH,
    "data.turns": TRUTH,
    "data.colour": number(0, 1, ends="[)"),
    "data.noise": number(0, 255),
    "data.resize": whole(0, LARGEST),
    "data.whole": TRUTH,
    "data.bad_images": one_of(*loading.BAD_IMAGES),
    "train_split": SPLIT,
    "calibration_split": SPLIT,
    "test_split": SPLIT,
    "dtype": one_of(*models.DTYPES),
    "objective": one_of(*train.OBJECTIVES),
    "init_from": TEXT,
    "localizer": TEXT,
    "heatmap": one_of(*localize.HEATMAPS),
    "teacher": TEXT,
    "teaching.classes": number(0, 1),
    "teaching.places": number(0),
    "teaching.sharpness": number(0),
    "view.name": one_of(*views.VIEWS),
    "view.k": whole(1),
    "view.iou_threshold": number(0, 1),
    "view.preset": one_of("", *patches.PRESETS),
    "view.branch": whole(0),
    "view.size": whole(0, LARGEST),
    "batch_size": whole(1),
    "accumulate": whole(1),
    "epochs": number(0, ends="()"),
    "optimizer.name": one_of(*optimizers.OPTIMIZERS),
    "optimizer.learning_rate": number(0, ends="()"),
    "optimizer.schedule": one_of(*optimizers.SCHEDULES),
    "optimizer.warmup": number(0, 1),
    "optimizer.boundaries": Allowed("rising shares between 0 and 1", _is_rising),
    "optimizer.momentum": number(0, 1, ends="[)"),
    "optimizer.nesterov": TRUTH,
    "optimizer.weight_decay": number(0),
    "optimizer.freeze": TEXT,
    "optimizer.rates": Allowed(
        "factors from 0 by role",
        lambda v: all(_is_number(factor) and factor >= 0 for factor in v.values()),
    ),
    "fixed": Allowed("roles", lambda v: all(isinstance(role, str) for role in v)),
    "auxiliary": number(0),
    "ppo.discount": number(0, 1),
    "ppo.clip": number(0),
    "ppo.value_weight": number(0),
    "ppo.entropy_weight": number(0),
    "ppo.deviation": number(0, ends="()"),
    "label_smoothing": number(0, 1, ends="[)"),
    "mixup": number(0),
    "save_every_epochs": number(0, ends="()"),
    "settle_batches": whole(0),
    "log_every_steps": whole(1),
    "method.name": one_of("", *registry.METHODS),
    "rule": one_of(*fitting.METHODS),
    "choice.inputs": some(whole(2)),
    "choice.iou_threshold": some(number(0, 1)),
    "choice.budget": number(0),
    "vote": TRUTH,
    "fusion": one_of(*evaluate.FUSIONS),
    "budgets": whole(1),
    "timing.images": whole(0),
    "timing.batch_size": whole(1),
    "analysed_images": whole(0),
    "evaluation": TEXT,
    "source": TEXT,
    "num_classes": whole(0),
    "fresh_classifier": TRUTH,
    "export": TEXT,
    "images": TEXT,
    "budget": number(0),
    "hold": one_of(*predict.HOLDS),
    "max_pixels": whole(1),
    "pictures": TRUTH,
    "runs": TEXT,
    "published": TEXT,
    "remeasure": TRUTH,
}


def check(config: dict, prefix: str = "config") -> None:
    """Check every key of a config, and of the stages in it.

    Args:
      config: as a dict; keys that are not there are not checked.
      prefix: that the keys are named with.

    Raises:
      ValueError: for the first value that is not allowed; it names key, value and what
        is allowed.
    """
    for key, allowed in KEYS.items():
        value, found = config, True
        for part in key.split("."):
            found = found and part in value
            value = value[part] if found else None
        if found and not allowed.fits(value):
            raise ValueError(
                f"`{prefix}.{key}` is {value!r}; allowed are {allowed.words}"
            )
    _check_splits(config, prefix)
    _check_network(config, prefix)
    _check_parts(config, prefix)
    _check_start(config, prefix)
    _check_resize(config.get("data", {}), prefix)
    _check_size(config, prefix)
    for name, stage in config.get("stages", {}).items():
        check(stage, f"{prefix}.stages.{name}")


def _check_splits(config: dict, prefix: str) -> None:
    """Refuse an empty split, unless it can be found in a folder."""
    folder = config.get("data", {}).get("name", "").startswith(datasets.FOLDER)
    for key, allowed in KEYS.items():
        if allowed is SPLIT and config.get(key) == "" and not folder:
            raise ValueError(
                f"`{prefix}.{key}` is ''; allowed are {allowed.words}, and '' for one "
                f"that is found in a folder, with `data.name={datasets.FOLDER}DIRECTORY`"
            )


def _check_network(config: dict, prefix: str) -> None:
    """Refuse an unknown network before hours of others."""
    name = config.get("model")
    if config.get("program") in ("train", "convert") and name not in models.MODELS:
        raise ValueError(
            f"`{prefix}.model` is {name!r}; choose one of {sorted(models.MODELS)}"
        )


def _check_parts(config: dict, prefix: str) -> None:
    """Refuse unknown networks of a method that are to be new."""
    known = models.MODELS | models.PARTS
    for role, part in config.get("parts", {}).items():
        if part.get("name") not in known:
            raise ValueError(
                f"`{prefix}.parts.{role}.name` is {part.get('name')!r}; choose one of "
                f"{sorted(known)}"
            )


def _check_start(config: dict, prefix: str) -> None:
    """Refuse weights that are not known, or not installed, before hours of others."""
    start, program = config.get("init_from", ""), config.get("program")
    if program not in ("train", "given") or not pretrained.named(start):
        return
    own = start.removeprefix(pretrained.PREFIX)  # the network that `given` takes
    try:
        pretrained.find(start, config.get("model", own) if program == "train" else own)
    except ValueError as error:
        raise ValueError(f"`{prefix}.init_from`: {error}") from None


def _check_size(config: dict, prefix: str) -> None:
    """Refuse images as they are where they must be squares, before hours of training."""
    if config.get("data", {}).get("image_size", 1):
        return
    program, who = config.get("program"), []
    if program == "train":
        who = ["training"]
    if program in ("evaluate", "export"):
        methods = [config.get("method", {}), *config.get("references", {}).values()]
        names = [method.get("name") for method in methods]
        known = [name for name in names if name in registry.METHODS]
        who = [name for name in known if not registry.any_size(name)]
    if who:
        raise ValueError(
            f"`{prefix}.data.image_size` is 0, images as they are; for {who[0]} allowed "
            "are whole numbers from 1"
        )


def _check_resize(data: dict, prefix: str) -> None:
    size, resize = data.get("image_size", 0), data.get("resize", 0)
    if resize and resize < size:
        raise ValueError(
            f"`{prefix}.data.resize` is {resize}; allowed are 0, and {size} or more, the "
            f"`image_size`"
        )
