"""Stage II: the networks that see the glance and the patches (2022, Sec. 3.5, 4.1).

    python main.py --config=configs/downstream.py:resnet50,full --workdir=runs/resnet50_full
    python main.py --config=configs/downstream.py:resnet50,resized --workdir=runs/resnet50_resized
    python main.py --config=configs/downstream.py:resnet50,patches --workdir=runs/resnet50_patches
    python main.py --config=configs/downstream.py:resnet50,random --workdir=runs/resnet50_random

The same with densenet201. `resized` is the glance network (Eq. 4), `patches` the patch
network (Eq. 5); both start from the full-image network in runs/NETWORK_full/network, and
`patches` needs AnchorNet in runs/anchornet/network. `full` trains that network, unless
you have one: --config.init_from. `random` learns from random patches, an ablation.

`b63`, `b95` and `b111` in place of VIEW fine-tune on the patches that this branch of the
localiser of 2020 finds (Sec. 4.1, 4.3), as large as they are: up to 24, 10 and 8 of an
image, so a GPU of 80 GB takes a batch in parts, --config.accumulate=8.

Data: imagenet2012 of TFDS. Expected on the validation images: full 76.93 % for
DenseNet-201 (Table 2), 76.16 % for ResNet-50 (torchvision's, trained alike); resized
70.38 % (DenseNet-201, Table 2) and 71.59 % (ResNet-50, Table 3, one input); the others
have no number of their own, see configs/dynamic.py. The accuracy that is printed is that
on `calibration_split`, 25,000 images kept out of the training. Time: not measured.
"""

from configs import common

NETWORKS = ("resnet50", "densenet201")
SCALES = {"b63": 63, "b95": 95, "b111": 111}  # px, of the branches of 2020
VIEWS = ("full", "resized", "patches", "random", *SCALES)


def get_config(argument=""):
    """Return the training that `argument`, NETWORK,VIEW, names."""
    network, view = common.choose(argument, network=NETWORKS, view=VIEWS)
    config = common.get_config()
    config.model, config.view.name = network, view
    config.optimizer.nesterov = False
    if view == "full":  # as the published weights were trained
        config.epochs = 90.0
        config.optimizer.boundaries = (1 / 3, 2 / 3)
        return config
    config.init_from = f"runs/{network}_full/network"
    if view == "patches":
        config.localizer = "runs/anchornet/network"
    if view in SCALES:
        config.localizer = "runs/anchornet_multiscale/network"
        config.view.update(name="patches", branch=SCALES[view], preset="many")
    config.epochs = 30.0
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "cosine"
    return config
