"""Stage I: the patch proposal network on ImageNet (2022, Sec. 3.5, Eq. 3; Sec. 4.1).

    python main.py --config=configs/anchornet.py --workdir=runs/anchornet

Data: imagenet2012 of TFDS. Expected accuracy: the paper prints none for AnchorNet alone.
Time: not measured.
"""

from configs import common


def get_config():
    """Return the defaults, which are this stage's."""
    return common.get_config()
