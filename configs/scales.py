"""Multi-scale patches in place of whole images (2020, Table 3).

    python main.py --config=configs/scales.py:resnet50 --workdir=runs/resnet50_scales
    python main.py --config=configs/scales.py:densenet201 --workdir=runs/densenet201_scales

Needs the networks of configs/anchornet.py:multiscale and configs/downstream.py, views
full, b63, b95 and b111, where their commands leave them.

Data: imagenet2012 of TFDS. Expected (Table 3): ResNet-50 72.6 % top-1 on the image, and
by patches 71.9 %: 70.0, 72.1 and 73.4 % of the 15,050, 18,047 and 16,903 images of the
three branches. The paper has no DenseNet-201; its DenseNet-169: 74.8 and 73.6 %. Time:
not measured.
"""

from configs import common

NETWORKS = ("resnet50", "densenet201")


def get_config(argument=""):
    """Return the evaluation of the NETWORK that `argument` names."""
    (network,) = common.choose(argument, network=NETWORKS)
    config = common.get_config()
    config.program = "scales"
    config.view.preset = "many"
    config.networks.anchornet = "runs/anchornet_multiscale/network"
    config.networks.full_image = f"runs/{network}_full/network"
    for branch in ("b63", "b95", "b111"):
        config.networks[branch] = f"runs/{network}_{branch}/network"
    return config
