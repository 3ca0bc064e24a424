"""One network that sees the whole image: what early exit is compared with.

    python main.py --config=configs/static.py --workdir=runs/static_demo
    python main.py --config=configs/static.py:folder,resnet18 --workdir=runs/static_mine
    python main.py --config=configs/static.py:imagenet,resnet50 --workdir=runs/static

DATA,NETWORK after the colon; the first command is `plates,resnet10`. Any network of
models.MODELS serves. Stages, in order: `network`, trained as `full_image` of
configs/anchornet.py is, `evaluate` and `export`. It runs through the same engine and by
the same clock as every other method.

Data: `plates` draws itself; `imagenette/320px-v2` is downloaded (342 MB); `folder` reads
`--config.data.name=folder:DIRECTORY`, train/CLASS/*.jpg and val/CLASS/*.jpg; `imagenet`
is imagenet2012 of TFDS, of whose training images 25,000 are kept for calibration.

Expected on ImageNet's validation images: 76.16 % for ResNet-50 (torchvision's weights). No
time was measured.
"""

from configs import anchornet, common


def get_config(argument="plates,resnet10"):
    """Return the pipeline on DATA with NETWORK, which `argument` names."""
    data, network = common.choose(argument, data=common.DATA, network=common.ANY)
    config = common.on(data)
    changes = anchornet.lengths(data, "full_image", network)
    return common.pipeline(
        config,
        {"network": common.training(config, network, "full", **changes)},
        common.static(common.trained("network")),
        {},
    )
