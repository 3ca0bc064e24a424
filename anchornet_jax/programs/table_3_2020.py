"""Multi-scale patches in place of whole images: what Table 3 of 2020 reports.

Localizing Multi-scale Semantic Patches (2020), Sec. 4.3. Each image is localised by one
branch, and a network fine-tuned on that branch's patches adds up the softmax outputs of
its patches. Patches wait in a group for their size until they fill a batch: shapes are
static, and none of a batch is wasted on images that have fewer patches.

Beside the localiser of 2020 stand those of `localizers`: each chooses by the same rule
among patches of the size that the first chose for the image, and the same networks
classify them. What a localiser costs is counted, which the paper leaves out.

The paper's mean numbers of patches, 5.6, 2.9 and 2.1, follow from neither of its two
settings: the first allows 5, 3 and 2, the second finds 24, 10 and 8 on 224 pixels.
"""

import collections
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import periodic_actions

from anchornet_jax.data import loading
from anchornet_jax.methods import localize, preprocessing
from anchornet_jax.models import multiply_adds
from anchornet_jax.programs import localizers
from anchornet_jax.runtime import files, networks, parallel, workdir


class Columns(NamedTuple):
    """What became of n images; of L localisers that of 2020 is the first."""

    branch: np.ndarray  # [n]
    whole_right: np.ndarray  # [n]
    localizer_right: np.ndarray  # [n]
    object_side: np.ndarray  # [n], px, root of the box's area; NaN without a box
    patches: np.ndarray  # [n, L]
    right: np.ndarray  # [n, L]
    top5: np.ndarray  # [n, L]


class Group:
    """The patches of one size that wait for a full batch."""

    def __init__(self, network, size: int, batch_size: int):
        """Compile nothing yet; `size` is the patches' side P in pixels."""
        self._batch = parallel.local_batch(batch_size)
        self._shape = (self._batch, size, size, 3)
        self._step = _classifier(network.model)
        self._variables = parallel.replicate(network.variables)
        self._waiting = []  # (owner, pixels [P, P, 3])
        self.sums = collections.defaultdict(float)  # owner: summed softmax [N]

    def add(self, owner, pixels: np.ndarray) -> None:
        """Let a patch wait, uint8 [P, P, 3]; run the batch that it fills."""
        self._waiting.append((owner, pixels))
        if len(self._waiting) == self._batch:
            self.flush()

    def flush(self) -> None:
        """Run what waits, filled up with black."""
        if not self._waiting:
            return
        images = np.zeros(self._shape, np.uint8)
        for row, (_, pixels) in enumerate(self._waiting):
            images[row] = pixels
        batch = parallel.shard({"image": images})
        found = parallel.gather(self._step(self._variables, batch))["probabilities"]
        for (owner, _), probabilities in zip(self._waiting, found):
            self.sums[owner] = self.sums[owner] + probabilities
        self._waiting = []


def _classifier(model):
    def step(variables, batch):
        pixels = preprocessing.normalise(batch["image"], model)
        logits, _ = model.apply(variables, pixels)
        return {"probabilities": jax.nn.softmax(logits)}

    return parallel.predict_step(step)


def table_3_2020(config, directory) -> dict:
    """Evaluate patches of three sizes in place of whole images, as the config says.

    Writes `summary.json`.

    Returns:
      What it holds: `branches`, a row per size, and `overall`. A row has the number and
      share of `images`, `accuracy` and `top5` by patches, mean `patches` and `macs` of
      an image, `macs_with_localizer`, `full_image_accuracy` of the same images, where the
      data has boxes the mean `object_side` in pixels, and `rivals`: {localiser:
      `accuracy`, `top5`, `patches`, `macs` and `macs_with_localizer`}. `localizer` and `full_image` have
      `accuracy` and `macs`.

    Raises:
      ValueError: for a config that cannot run, before anything is compiled or written.
    """
    parallel.local_batch(config.batch_size)
    source = loading.prepare(**config.data)
    source.examples(config.test_split)
    localizer, full, own = _load(config)
    selection = {
        key: value
        for key, value in config.view.items()
        if key not in ("name", "branch", "size")
    }
    rivals = localizers.load(config.networks, tuple(own), source.image_size)
    images = jax.ShapeDtypeStruct((1, *2 * [source.image_size], 3), "uint8")
    localised = _localised(localizer, rivals, selection)
    variables = localizer.variables, {n: one.variables for n, one in rivals.items()}
    jax.eval_shape(localised, variables, images)
    directory = workdir.claim(directory, config.to_dict())
    columns = _run(config, source, localised, variables, full, own)
    summary = _summary(columns, localizer, rivals, full, own, source.image_size)
    summary |= {"data": config.data.name, "preset": config.view.preset}
    if jax.process_index() == 0:
        files.write_json(directory / "summary.json", summary)
    return summary


def _load(config):
    """Return localiser, full-image network and {size: network of its patches}."""
    for name in ("localizer", "full_image"):
        if not config.networks.get(name):
            raise ValueError(f"`config.networks.{name}` is empty; give a directory")
    localizer = networks.load(config.networks.localizer)
    own = {}
    for field in localizer.model.fields:
        name = f"b{field.size}"
        if not config.networks.get(name):
            raise ValueError(
                f"`config.networks.{name}` is empty; give the network for patches of "
                f"{field.size} pixels"
            )
        own[field.size] = networks.load(config.networks[name])
    full = networks.load(config.networks.full_image)
    classes = {n.model.num_classes for n in (localizer, full, *own.values())}
    if len(classes) > 1:
        raise ValueError(f"the networks have different numbers of classes: {classes}")
    return localizer, full, own


def _localised(localizer, rivals, selection):
    """Return the function that finds the patches of every localiser.

    `localised((variables, {rival: variables}), images)` returns what the localiser says,
    as a dict, with `corners` [B, L, K, 2] and `valid` [B, L, K] of all L localisers.
    """

    def localised(variables, images):
        own, others = variables
        found = localize.localize(localizer.model, own, images, **selection)
        places = [(found.corners, found.valid)]
        for name, rival in rivals.items():
            one = localize.localize(
                rival.model, others[name], images, branches=found.branch, **selection
            )
            places.append((one.corners, one.valid))
        corners, valid = (jnp.stack(parts, 1) for parts in zip(*places))
        return found._asdict() | {"corners": corners, "valid": valid}

    return localised


def _run(config, source, localised, variables, full, own) -> Columns:
    """Run the split; return what became of each image that could be decoded."""
    localize_step = parallel.predict_step(
        lambda variables, batch: localised(variables, batch["image"])
    )
    whole_step = _classifier(full.model)
    variables = parallel.replicate(variables)
    whole_variables = parallel.replicate(full.variables)
    groups = [Group(network, size, config.batch_size) for size, network in own.items()]
    about = []
    total = source.examples(config.test_split)
    report = periodic_actions.ReportProgress(num_train_steps=total, every_secs=10)
    for batch in loading.evaluation(
        source, config.test_split, batch_size=config.batch_size
    ):
        found = parallel.gather(localize_step(variables, {"image": batch["image"]}))
        whole = parallel.gather(whole_step(whole_variables, {"image": batch["image"]}))
        batch = parallel.gather(batch)
        for i in np.flatnonzero(batch["mask"]):
            row = {key: value[i] for key, value in found.items()}
            _give(groups, len(about), batch["image"][i], row, tuple(own))
            said = {
                "whole": whole["probabilities"][i].argmax(),
                "localizer": row["logits"].argmax(),
            }
            box = batch["box"][i] if "box" in batch else np.full(4, np.nan)
            about.append((row, said, batch["label"][i], box))
        report(min(total, len(about)))
    for group in groups:
        group.flush()
    rows = [_row(number, groups, *parts) for number, parts in enumerate(about)]
    return _columns(np.concatenate(parallel.exchange(np.array(rows, np.float64))))


def _give(groups, number, image, found, sizes) -> None:
    """Hand the patches that each localiser found to the group of their size."""
    size, group = sizes[found["branch"]], groups[found["branch"]]
    for who, (corners, valid) in enumerate(zip(found["corners"], found["valid"])):
        for y, x in corners[valid]:
            group.add((number, who), image[y : y + size, x : x + size])


def _row(number, groups, found, said, label, box) -> list[float]:
    """Return what became of an image, in the order of `Columns`."""
    sums = groups[int(found["branch"])].sums
    by = [sums[number, who] for who in range(len(found["valid"]))]
    return [
        found["branch"],
        said["whole"] == label,
        said["localizer"] == label,
        np.sqrt((box[2:] - box[:2]).prod()),
        *found["valid"].sum(1),
        *(scores.argmax() == label for scores in by),
        *(label in np.argsort(-scores, kind="stable")[:5] for scores in by),
    ]


def _columns(rows: np.ndarray) -> Columns:
    """Take rows of `_row` [n, 4 + 3 L] apart."""
    return Columns(*rows[:, :4].T, *np.split(rows[:, 4:], 3, axis=1))


def _summary(columns, localizer, rivals, full, own, image_size) -> dict:
    macs = {
        "anchornet_2020": multiply_adds.model_macs(localizer.model, image_size),
        **{name: rival.macs for name, rival in rivals.items()},
    }
    per_patch = np.array(
        [multiply_adds.model_macs(n.model, size) for size, n in own.items()]
    )
    spent = per_patch[columns.branch.astype(int)][:, None] * columns.patches
    everyone = np.ones(len(spent), bool)
    groups = {str(size): columns.branch == j for j, size in enumerate(own)}
    table = {
        name: _table_row(columns, spent, macs, chosen)
        for name, chosen in {**groups, "overall": everyone}.items()
    }
    return {
        "overall": table.pop("overall"),
        "branches": table,
        "localizer": {
            "accuracy": float(columns.localizer_right.mean()),
            "macs": macs["anchornet_2020"],
        },
        "full_image": {
            "accuracy": float(columns.whole_right.mean()),
            "macs": multiply_adds.model_macs(full.model, image_size),
        },
    }


def _table_row(columns, spent, localizer_macs, chosen) -> dict:
    """Return one row of Table 3; means are None where no image has the branch."""
    count = int(chosen.sum())

    def mean(values):
        value = float(values[chosen].mean()) if count else np.nan
        return value if np.isfinite(value) else None

    def by(who, macs):
        own = mean(spent[:, who])
        return {
            "accuracy": mean(columns.right[:, who]),
            "top5": mean(columns.top5[:, who]),
            "patches": mean(columns.patches[:, who]),
            "macs": own,
            "macs_with_localizer": None if own is None else own + macs,
        }

    first, *others = (by(who, macs) for who, macs in enumerate(localizer_macs.values()))
    return {
        "images": count,
        "share": count / len(chosen),
        **first,
        "rivals": dict(zip([*localizer_macs][1:], others)),
        "full_image_accuracy": mean(columns.whole_right),
        "object_side": mean(columns.object_side),
    }
