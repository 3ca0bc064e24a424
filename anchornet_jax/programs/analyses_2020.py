"""What the localiser of 2020 has learned: the analyses of its paper as one program.

Localizing Multi-scale Semantic Patches (2020), Sec. 4.2 to 4.4: Table 4, one localised
patch against the whole image resized to the same size, by a network that saw neither in
training; Figure 6, accuracy against the area that patches cover, and where these patches
are masked; Figures 3, 4 and 5, pictures.

Patches are selected alike on the heatmap of each localiser: that of 2020, and those of
`localizers`. All use the branch, so the patch size, that the first chose for the image.
"""

import functools

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax

from anchornet_jax.data import collect, loading
from anchornet_jax.figures import figures_2020, plots
from anchornet_jax.methods import localize, patches, preprocessing
from anchornet_jax.models import multiply_adds
from anchornet_jax.programs import localizers
from anchornet_jax.runtime import files, networks, parallel, workdir

OWN = "anchornet_2020"  # the name of the localiser that is analysed
SEPARATE = "separate"  # the preset for looking at patches, Sec. 4.1


def analyses_2020(config, directory) -> dict:
    """Analyse a localiser of 2020 with a network for whole images, as the config says.

    Writes `summary.json`, `analyses.npz` and the figures, as PNG and SVG.

    Returns:
      What `summary.json` holds: `table_4`, per size `images`, `rescaled` accuracy and
      {localiser: accuracy} `localized`, None where no image has the branch; `figure_6`,
      per localiser a row for each number of `patches` with the mean `area` they cover,
      the accuracy on what is `covered` and on what is left where they are `masked`;
      `localizer_macs`, per localiser the multiply-adds that it takes for an image.

    Raises:
      ValueError: for a config that cannot run, before anything is compiled or written.
    """
    parallel.local_batch(config.batch_size)
    source = loading.prepare(**config.data)
    source.examples(config.test_split)
    for name in ("localizer", "full_image"):
        if not config.networks.get(name):
            raise ValueError(f"`config.networks.{name}` is empty; give a directory")
    localizer = networks.load(config.networks.localizer)
    full = networks.load(config.networks.full_image)
    if len(localizer.model.fields) == 1:
        raise ValueError(
            f"`config.networks.localizer` is {config.networks.localizer!r}, which has "
            "one branch; the analyses are of the localiser of 2020"
        )
    k, threshold = config.view.k, config.view.iou_threshold
    sizes = [field.size for field in localizer.model.fields]
    rivals = localizers.load(config.networks, sizes, source.image_size)
    models = {name: rival.model for name, rival in rivals.items()}
    step = make_step(localizer.model, full.model, models, k, threshold)
    directory = workdir.claim(directory, config.to_dict())
    found = collect.collect(
        parallel.predict_step(step),
        parallel.replicate(
            (
                localizer.variables,
                full.variables,
                {name: rival.variables for name, rival in rivals.items()},
            )
        ),
        source,
        config.test_split,
        batch_size=config.batch_size,
        limit=config.analysed_images,
        images=source.examples(config.test_split),
    )
    names = (OWN, *rivals)
    own_macs = multiply_adds.model_macs(localizer.model, source.image_size)
    summary = {
        "data": config.data.name,
        "table_4": _table_4(found, sizes, names),
        "figure_6": _figure_6(found, names),
        "localizer_macs": {OWN: own_macs}
        | {name: rival.macs for name, rival in rivals.items()},
    }
    if jax.process_index() == 0:
        files.write_json(directory / "summary.json", summary)
        arrays = {name: a for name, a in found.items() if "/" not in name}
        files.write_npz(directory / "analyses.npz", **arrays)
        for name, figure in figures_2020.figures(
            arrays, summary, source.classes
        ).items():
            plots.save(figure, directory / name)
        logging.info("wrote figures to %s", directory)
    return summary


def make_step(localizer, full, rivals, k: int, iou_threshold: float):
    """Return the step that runs all analyses on a batch, to be mapped.

    Args:
      localizer: of 2020.
      full: the network for whole images; takes any size.
      rivals: {name: model} of other localisers, with a branch for each of its sizes.
      k: patches per image in Figure 6.
      iou_threshold: of their selection.

    Returns:
      `step((localizer's, full's, {rival: its} variables), batch)` for uint8 images [b, H, W, 3]; a dict of
      arrays [b, ...]: `branch`, `predicted` and `confidence` [b, 3] of each branch,
      `best` [b, 3, 2], the corner of the strongest patch for what that branch predicts,
      `corners` [b, 5, 2] and `valid` of the chosen branch by the preset `separate`,
      `attention` [b, 3, G, G], NaN beyond a smaller grid, `rescaled` [b, 3] classes, and
      of each localiser its `localized` [b, 3] classes, its `area` and its `covered` and
      `masked` classes [b, K].
    """
    sizes = [field.size for field in localizer.fields]

    def step(variables, batch):
        own, whole, others = variables
        images = batch["image"]
        classify = lambda pixels: full.apply(whole, pixels)[0].argmax(-1)
        normalise = functools.partial(preprocessing.normalise, model=full)
        logits, out = localizer.apply(own, preprocessing.normalise(images, localizer))
        result = _of_branches(localizer, own, out)
        found = localize.localize(localizer, own, images, preset=SEPARATE)
        result |= {"corners": found.corners, "valid": found.valid}
        pixels = normalise(images)
        result["rescaled"] = _rescaled(localizer, classify, pixels)
        evidence = localizer.contributions(own, out, logits.argmax(-1))
        looks = {OWN: (localizer.fields, evidence)}
        for name, model in rivals.items():
            maps = localize.look(model, others[name], images)[2]
            looks[name] = model.fields, maps
        size = jnp.array(sizes)[out["branch"]]
        for name, (fields, maps) in looks.items():
            result[f"{name}/localized"] = _one_patch(fields, maps, classify, pixels)
            selected = [
                (
                    heatmap,
                    *patches.select(heatmap, field, k=k, iou_threshold=iou_threshold),
                )
                for heatmap, field in zip(maps, fields)
            ]
            _, corners, valid = localize.choose(selected, out["branch"])
            mask = cover(corners, valid, size, *images.shape[1:3])
            for key_, value in _with_and_without(
                mask, images, lambda kept: classify(normalise(kept))
            ).items():
                result[f"{name}/{key_}"] = value
        return result

    return step


def _of_branches(localizer, variables, out) -> dict:
    """Return what each branch says by itself, and where."""
    logits = out["branch_logits"]
    predicted = logits.argmax(-1)  # [b, 3]
    best = []
    for j, field in enumerate(localizer.fields):
        heatmap = localizer.contributions(variables, out, predicted[:, j])[j]
        corners, _ = patches.select(heatmap, field, k=1)
        best.append(corners[:, 0])
    most = max(maps.shape[1] for maps in out["attention"])
    attention = [
        jnp.pad(
            maps,
            [(0, 0)] + 2 * [(0, most - maps.shape[1])],
            constant_values=jnp.nan,
        )
        for maps in out["attention"]
    ]
    return {
        "branch": out["branch"],
        "predicted": predicted,
        "confidence": jax.nn.softmax(logits).max(-1),
        "best": jnp.stack(best, 1),
        "attention": jnp.stack(attention, 1),
    }


def _rescaled(localizer, classify, pixels) -> jax.Array:
    """Classify the whole image at the patch size of each branch: [b, 3] (Table 4)."""
    said = [classify(patches.resize(pixels, field.size)) for field in localizer.fields]
    return jnp.stack(said, 1)


def _one_patch(fields, maps, classify, pixels) -> jax.Array:
    """Classify the strongest patch of each branch: [b, 3] (Table 4)."""
    said = []
    for heatmap, field in zip(maps, fields):
        corners, _ = patches.select(heatmap, field, k=1)
        said.append(classify(patches.crop(pixels, corners, field.size)[:, 0]))
    return jnp.stack(said, 1)


def cover(corners, valid, size, height: int, width: int) -> jax.Array:
    """Mark the pixels that the first 1 ... K patches cover.

    Args:
      corners: [B, K, 2] int32.
      valid: [B, K].
      size: [B] int32, side of the image's patches in pixels.
      height: of the image in pixels.
      width: of the image in pixels.

    Returns:
      [B, K, H, W] bool.
    """

    def inside(low, length):  # [B, K, length]
        place = jnp.arange(length)[None, None]
        return (place >= low[..., None]) & (place < (low + size[:, None])[..., None])

    rows, columns = inside(corners[..., 0], height), inside(corners[..., 1], width)
    own = rows[..., None] & columns[:, :, None] & valid[..., None, None]
    return lax.associative_scan(jnp.logical_or, own, axis=1)


def _with_and_without(mask, images, classify) -> dict:
    """Classify what is covered, and what is left; pixels elsewhere are 0 (Figure 6)."""

    def one(kept):  # [b, H, W]
        return classify(images * kept[..., None])

    masks = mask.swapaxes(0, 1)  # [K, b, H, W]: one after the other, to fit memory
    return {
        "area": mask.mean((2, 3)),
        "covered": lax.map(one, masks).T,
        "masked": lax.map(one, ~masks).T,
    }


def _table_4(found, sizes, names) -> dict:
    table = {}
    for j, size in enumerate(sizes):
        chosen = found["branch"] == j

        def right(said, j=j, chosen=chosen):
            same = found[said][chosen, j] == found["label"][chosen]
            return float(same.mean()) if chosen.any() else None

        table[str(size)] = {
            "images": int(chosen.sum()),
            "rescaled": right("rescaled"),
            "localized": {name: right(f"{name}/localized") for name in names},
        }
    return table


def _figure_6(found, names) -> dict:
    right = lambda said: (said == found["label"][:, None]).mean(0).tolist()
    return {
        name: [
            {"patches": n + 1, "area": area, "covered": covered, "masked": masked}
            for n, (area, covered, masked) in enumerate(
                zip(
                    found[f"{name}/area"].mean(0).tolist(),
                    right(found[f"{name}/covered"]),
                    right(found[f"{name}/masked"]),
                )
            )
        ]
        for name in names
    }
