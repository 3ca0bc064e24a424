"""Multi-scale patches in place of whole images: what Table 3 of 2020 reports.

Localizing Multi-scale Semantic Patches (2020), Sec. 4.3. Each image is localised by one
branch, and a network fine-tuned on that branch's patches adds up the softmax outputs of
its patches. Patches wait in a group for their size until they fill a batch: shapes are
static, and none of a batch is wasted on images that have fewer patches.

The paper's mean numbers of patches, 5.6, 2.9 and 2.1, follow from neither of its two
settings: the first allows 5, 3 and 2, the second finds 24, 10 and 8 on 224 pixels.
"""

import collections
from typing import NamedTuple

import jax
import numpy as np
from clu import periodic_actions

from anchornet_jax.data import loading
from anchornet_jax.methods import localize, preprocessing
from anchornet_jax.models import multiply_adds
from anchornet_jax.runtime import files, networks, parallel, workdir


class Row(NamedTuple):
    """One image: what became of it."""

    branch: int
    patches: int
    right: bool
    top5: bool
    random_right: bool
    whole_right: bool
    localizer_right: bool
    object_side: float  # px, root of the box's area; NaN without a box


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
      an image, `macs_with_localizer`, `random_patches_accuracy` by as many random patches
      of the same size, `full_image_accuracy` of the same images and, where the data has
      boxes, the mean `object_side` in pixels. `localizer` and `full_image` have
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
    images = jax.ShapeDtypeStruct((1, *2 * [source.image_size], 3), "uint8")
    localised = lambda variables, images: localize.localize(
        localizer.model, variables, images, **selection
    )
    jax.eval_shape(localised, localizer.variables, images)
    directory = workdir.claim(directory, config.to_dict())
    rows = _run(config, source, localised, localizer, full, own)
    summary = _summary(rows, localizer, full, own, source.image_size)
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


def _run(config, source, localised, localizer, full, own) -> list[Row]:
    """Run the split; return a row for each image that could be decoded."""

    def step(variables, batch):
        found = localised(variables, batch["image"])
        return found._asdict()

    localize_step = parallel.predict_step(step)
    whole_step = _classifier(full.model)
    variables = parallel.replicate(localizer.variables)
    whole_variables = parallel.replicate(full.variables)
    groups = [Group(network, size, config.batch_size) for size, network in own.items()]
    about = []
    total = source.examples(config.test_split)
    report = periodic_actions.ReportProgress(num_train_steps=total, every_secs=10)
    rng = np.random.default_rng((config.seed, jax.process_index()))
    for batch in loading.evaluation(
        source, config.test_split, batch_size=config.batch_size
    ):
        found = parallel.gather(localize_step(variables, {"image": batch["image"]}))
        whole = parallel.gather(whole_step(whole_variables, {"image": batch["image"]}))
        batch = parallel.gather(batch)
        for i in np.flatnonzero(batch["mask"]):
            row = {key: value[i] for key, value in found.items()}
            _give(groups, len(about), batch["image"][i], row, tuple(own), rng)
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
    hosts = parallel.exchange(np.array(rows, np.float64).reshape(len(rows), -1))
    return [Row(*row) for row in np.concatenate(hosts)]


def _give(groups, number, image, found, sizes, rng) -> None:
    """Hand an image's patches, and as many random ones, to the group of their size."""
    size, group = sizes[found["branch"]], groups[found["branch"]]
    corners = found["corners"][found["valid"]]
    random = rng.integers(0, np.array(image.shape[:2]) - size + 1, corners.shape)
    for kind, places in (("localized", corners), ("random", random)):
        for y, x in places:
            group.add((number, kind), image[y : y + size, x : x + size])


def _row(number, groups, found, said, label, box) -> Row:
    branch = int(found["branch"])
    localized, random = (
        groups[branch].sums[number, kind] for kind in ("localized", "random")
    )
    return Row(
        branch=branch,
        patches=int(found["valid"].sum()),
        right=localized.argmax() == label,
        top5=label in np.argsort(-localized, kind="stable")[:5],
        random_right=random.argmax() == label,
        whole_right=said["whole"] == label,
        localizer_right=said["localizer"] == label,
        object_side=float(np.sqrt((box[2:] - box[:2]).prod())),
    )


def _summary(rows, localizer, full, own, image_size) -> dict:
    columns = Row(*np.array(rows, np.float64).T)
    localizer_macs = multiply_adds.model_macs(localizer.model, image_size)
    per_patch = np.array(
        [multiply_adds.model_macs(n.model, size) for size, n in own.items()]
    )
    macs = per_patch[columns.branch.astype(int)] * columns.patches  # of each image
    everyone = np.ones(len(rows), bool)
    groups = {str(size): columns.branch == j for j, size in enumerate(own)}
    table = {
        name: _table_row(columns, macs, localizer_macs, chosen)
        for name, chosen in {**groups, "overall": everyone}.items()
    }
    return {
        "overall": table.pop("overall"),
        "branches": table,
        "localizer": {
            "accuracy": float(columns.localizer_right.mean()),
            "macs": localizer_macs,
        },
        "full_image": {
            "accuracy": float(columns.whole_right.mean()),
            "macs": multiply_adds.model_macs(full.model, image_size),
        },
    }


def _table_row(columns, macs, localizer_macs, chosen) -> dict:
    """Return one row of Table 3; means are None where no image has the branch."""
    count = int(chosen.sum())

    def mean(values):
        value = float(values[chosen].mean()) if count else np.nan
        return value if np.isfinite(value) else None

    spent = mean(macs)
    return {
        "images": count,
        "share": count / len(chosen),
        "accuracy": mean(columns.right),
        "top5": mean(columns.top5),
        "patches": mean(columns.patches),
        "macs": spent,
        "macs_with_localizer": spent and spent + localizer_macs,
        "random_patches_accuracy": mean(columns.random_right),
        "full_image_accuracy": mean(columns.whole_right),
        "object_side": mean(columns.object_side),
    }
