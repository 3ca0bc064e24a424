"""The evaluation behind Tables 2 and 3 and Figures 5, 6 and 7 of 2022.

    python main.py --config=configs/dynamic.py:resnet50 --workdir=runs/resnet50_dynamic
    python main.py --config=configs/dynamic.py:densenet201 --workdir=runs/densenet201_dynamic

Needs the networks of configs/anchornet.py and configs/downstream.py in runs/anchornet,
runs/NETWORK_full, runs/NETWORK_resized and runs/NETWORK_patches; others are given by
--config.networks.patches=DIRECTORY and so on.

Data: imagenet2012 of TFDS; thresholds are fitted on 25,000 training images. Writes
summary.json, where the paper's results are

- ResNet-50: `anytime` 71.59, 74.42, 75.27, 75.48, 75.65 % after 1 to 5 inputs, beside
  58.50, 66.34, 68.55, 70.30, 70.81 % for random patches (Table 3, Fig. 6; there the
  first input is random too, here it is the glance); `budgeted` 71.6 % at 0.75 G to
  75.9 % at 1.7 G multiply-adds (Fig. 5); its `expected_inputs` and `exits` are Fig. 7.
- DenseNet-201: `anytime` 70.38, 73.65, 74.53 % after 1 to 3 inputs, `full_image` 76.93 %
  (Table 2). Its milliseconds are not in this evaluation.

Time: not measured.
"""

from configs import common

NETWORKS = ("resnet50", "densenet201")


def get_config(argument=""):
    """Return the evaluation of the NETWORK that `argument` names."""
    (network,) = common.choose(argument, network=NETWORKS)
    config = common.get_config()
    config.program = "evaluate"
    config.networks.anchornet = "runs/anchornet/network"
    config.networks.full_image = f"runs/{network}_full/network"
    config.networks.glance = f"runs/{network}_resized/network"
    config.networks.patches = f"runs/{network}_patches/network"
    return config
