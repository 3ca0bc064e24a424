"""Saccader: glimpses that REINFORCE has taught where to look, evaluation and export.

    python main.py --config=configs/saccader.py --workdir=runs/saccader_demo
    python main.py --config=configs/saccader.py:folder --workdir=runs/saccader_mine
    python main.py --config=configs/saccader.py:imagenet --workdir=runs/saccader

DATA after the colon; the first command is `plates`. Stages, in order: `representation`
(cross-entropy of the map of logits), `location` (the other half learns to visit cells in
the order of the predicted class' logits), `joint` (cross-entropy and REINFORCE, both
halves), `evaluate` and `export`. With `--config.stages.evaluate.method.glimpses=12` the
same network looks longer.

Data: `plates` draws itself; `imagenette/320px-v2` is downloaded (342 MB); `folder` reads
`--config.data.name=folder:DIRECTORY`, train/CLASS/*.jpg and val/CLASS/*.jpg; `imagenet`
is imagenet2012 of TFDS, of whose training images 25,000 are kept for calibration.

Expected on ImageNet's validation images: the paper's abstract has 75 % for its best
network, which classifies the glimpses by another, larger one. The public code holds no
trainings and no weights; weights of the losses are that code's, and the schedule on
ImageNet is the usual one of ResNet-50, since none was published with it. No time was
measured.
"""

from configs import common
from configs.anchornet import SMALL as OF_ANCHORNET

NETWORKS = {data: "saccader" for data in common.DATA} | {"plates": "saccader_small"}
PLATES = {  # stage: (batch size, epochs, learning rate), cosine after a short warm-up
    "representation": (32, 1.6, 0.1),
    "location": (32, 0.4, 0.1),
    "joint": (32, 0.8, 0.02),
}
SMALL = {  # thousands of images
    "representation": OF_ANCHORNET["full_image"],
    "location": (64, 10.0, 0.05),
    "joint": OF_ANCHORNET["glance"],
}
IMAGENET = {
    "representation": (256, 90.0, 0.1),
    "location": (256, 10.0, 0.1),
    "joint": (256, 30.0, 0.01),
}
LENGTHS = {"imagenette": SMALL, "folder": SMALL, "plates": PLATES, "imagenet": IMAGENET}
# What a phase must not change: patterns of training/saccader.py's two halves.
STAGES = {  # stage: (frozen, the stage that it starts from)
    "representation": ("where|mix|cell", None),
    "location": ("representation", "representation"),
    "joint": ("", "location"),
}


def trainings(config, data: str) -> dict:
    """Return the three phases by stage."""
    stages = {}
    for name, (frozen, before) in STAGES.items():
        batch_size, epochs, rate = LENGTHS[data][name]
        stages[name] = common.training(
            config,
            NETWORKS[data],
            "full",
            reads={"init_from": before} if before else {},
            optimizer={
                "schedule": "cosine",
                "warmup": 0.05,
                "learning_rate": rate,
                "freeze": frozen,
            },
            objective=f"saccader_{name}",
            batch_size=batch_size,
            epochs=epochs,
        )
    return stages


def get_config(argument="plates"):
    """Return the pipeline on DATA, which `argument` names."""
    (data,) = common.choose(argument, data=common.DATA)
    config = common.on(data)
    networks = {"network": common.trained("joint")}
    return common.pipeline(
        config,
        trainings(config, data),
        common.method("saccader", networks, glimpses=6),  # T, of the public code
        {
            "location_pretraining": common.method(
                "saccader", {"network": common.trained("location")}, glimpses=6
            )
        },
    )
