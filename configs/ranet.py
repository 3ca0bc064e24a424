"""RANet: sub-networks on coarse maps first, with exits, evaluation and export.

    python main.py --config=configs/ranet.py --workdir=runs/ranet_demo
    python main.py --config=configs/ranet.py:folder --workdir=runs/ranet_mine
    python main.py --config=configs/ranet.py:imagenet --workdir=runs/ranet

DATA after the colon; the first command is `plates`. Stages and training are those of
configs/msdnet.py. `ranet_64` is the network of the paper's curve, `ranet_32` the one that
the published code's README trains: `--config.stages.network.model=ranet_32`. The paper's
rule in place of fitted thresholds: `--config.stages.evaluate.rule=geometric`.

Data: `plates` draws itself; `imagenette/320px-v2` is downloaded (342 MB); `folder` reads
`--config.data.name=folder:DIRECTORY`, train/CLASS/*.jpg and val/CLASS/*.jpg; `imagenet`
is imagenet2012 of TFDS, of whose training images 50,000 are kept for calibration.

Expected on ImageNet's validation images, at `ranet_64`: `anytime` 63.1, 67.4, 69.5, 70.4,
74.1, 74.6, 74.6, 74.8 % at 0.43, 0.89, 1.15, 1.35, 2.28, 2.58, 3.23, 3.33 G multiply-adds,
`budgeted` 72.4 % at 1.0 G and 75.0 % at 1.75 G (figures of GFNet and RANet, 2020,
digitised). No weights were published. `plates`: 97.7, 98.1, 99.3, 99.3, 99.7, 99.7 % at 34 to
236 M, one run; 41 images/s on two idle cores, so 13 minutes. No other time was measured.
"""

from configs import common, msdnet

NETWORKS = {  # on each data set
    "plates": "ranet_small",
    "imagenette": "ranet_32",
    "folder": "ranet_32",
    "imagenet": "ranet_64",
}


def get_config(argument="plates"):
    """Return the pipeline on DATA, which `argument` names."""
    (data,) = common.choose(argument, data=common.DATA)
    return msdnet.pipeline(data, NETWORKS[data])
