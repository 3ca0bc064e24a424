"""Stage I: the patch proposal network on ImageNet (2022, Sec. 3.5, Eq. 3; Sec. 4.1).

    python main.py --config=configs/anchornet.py --workdir=runs/anchornet
    python main.py --config=configs/anchornet.py:multiscale --workdir=runs/anchornet_multiscale

The second is the localiser of 2020 with its three branches, trained as its Sec. 4.1 says:
100 epochs, batches of 256, the rate 0.1 divided by 10 every 30 epochs.

Data: imagenet2012 of TFDS. Expected accuracy: neither paper prints one for its AnchorNet
alone. Time: not measured.
"""

from configs import common

NETWORKS = {"single": "anchornet", "multiscale": "anchornet_multiscale"}


def get_config(argument="single"):
    """Return the training of the network that `argument` names, the one of 2022 at first.

    The defaults are the stage of 2022; of 2020 no Nesterov momentum is told.
    """
    (network,) = common.choose(argument, network=NETWORKS)
    config = common.get_config()
    config.model = NETWORKS[network]
    config.optimizer.nesterov = network == "single"
    return config
