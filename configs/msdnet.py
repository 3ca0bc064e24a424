"""MSDNet: one network with exits at several depths, evaluation and export.

    python main.py --config=configs/msdnet.py --workdir=runs/msdnet_demo
    python main.py --config=configs/msdnet.py:folder --workdir=runs/msdnet_mine
    python main.py --config=configs/msdnet.py:imagenet --workdir=runs/msdnet

DATA after the colon; the first command is `plates`. Stages, in order: `network` (the
cross-entropies of all exits, summed), `evaluate` and `export`. Another network of the
family: `--config.stages.network.model=msdnet_4_4`. The paper's rule in place of fitted
thresholds: `--config.stages.evaluate.rule=geometric`. Weights of the published PyTorch
code are converted by configs/convert.py and take the place of the training by
`--config.stages.network.program=given` and `--config.stages.network.init_from=DIRECTORY`.

Data: `plates` draws itself; `imagenette/320px-v2` is downloaded (342 MB); `folder` reads
`--config.data.name=folder:DIRECTORY`, train/CLASS/*.jpg and val/CLASS/*.jpg; `imagenet`
is imagenet2012 of TFDS, of whose training images 50,000 are kept for calibration.

Expected on ImageNet's validation images, at `msdnet_7_7`: `anytime` 62.4, 70.0, 73.0,
74.1, 74.7 % at 0.50, 1.34, 2.22, 2.96, 3.25 G multiply-adds, `budgeted` 71.2 % at 1.0 G
and 74.0 % at 1.75 G (figures of GFNet and RANet, 2020, digitised). The published weights,
trained without those 50,000 images: 62.9, 70.3, 73.0, 73.6, 74.6 % (GitHub,
kalviny/MSDNet-PyTorch, issue 10). `plates`: 91.0, 98.4, 99.6, 99.9, 99.8 % at 30 to 214 M, one run; 62 images/s on two
idle cores, so 9 minutes for its 4 epochs. No other time was measured.
"""

from configs import common

NETWORKS = {  # on each data set
    "plates": "msdnet_small",
    "imagenette": "msdnet_4_4",
    "folder": "msdnet_4_4",
    "imagenet": "msdnet_7_7",
}
PLATES = (32, 4.0, 0.1)  # batch size, epochs, learning rate
SMALL = (64, 60.0, 0.05)  # thousands of images
LENGTHS = {"plates": PLATES, "imagenette": SMALL, "folder": SMALL}
IMAGENET = {  # 2018, Sec. 5, Training details
    "batch_size": 256,
    "epochs": 90.0,
    "optimizer": {
        "schedule": "step",
        "learning_rate": 0.1,
        "boundaries": (1 / 3, 2 / 3),
        "nesterov": False,
    },
}


def lengths(data: str) -> dict:
    """Return batch, epochs and optimiser of the training on a data set."""
    if data == "imagenet":
        return IMAGENET
    batch_size, epochs, rate = LENGTHS[data]
    schedule = {"schedule": "cosine", "warmup": 0.05, "learning_rate": rate}
    return {"batch_size": batch_size, "epochs": epochs, "optimizer": schedule}


def pipeline(data: str, model: str):
    """Return the pipeline that trains a network with several exits on a data set."""
    config = common.on(data)
    if data == "imagenet":  # as many as the published networks are calibrated on
        config.train_split, config.calibration_split = "train[50000:]", "train[:50000]"
    network = common.trained("network")
    return common.pipeline(
        config,
        {"network": common.training(config, model, "full", **lengths(data))},
        common.method("multi_exit", {"network": network}),
        {"whole_network": common.static(network)},
    )


def get_config(argument="plates"):
    """Return the pipeline on DATA, which `argument` names."""
    (data,) = common.choose(argument, data=common.DATA)
    return pipeline(data, NETWORKS[data])
