"""BagNet in AnchorNet's place: its class map chooses the same patches.

    python main.py --config=configs/bagnet.py --workdir=runs/bagnet_demo
    python main.py --config=configs/bagnet.py:imagenette,resnet18 --workdir=runs/bagnet_imagenette
    python main.py --config=configs/bagnet.py:imagenet,resnet50 --workdir=runs/bagnet

DATA,NETWORK after the colon; the first command is `plates,resnet10`. The stages of
configs/anchornet.py; only `localizer` is a BagNet-33, whose locations see 33 pixels and
which so chooses among the patches of 95 pixels that AnchorNet has
(`--config.stages.evaluate.method.size`). On its own BagNet is the method `static`, the
reference `localizer_alone`. Another one: `--config.stages.localizer.model=bagnet17`. Its
published weights are converted by configs/convert.py and take the place of the training
by `--config.stages.localizer.program=given` and
`--config.stages.localizer.init_from=DIRECTORY`.

Data: `plates` draws itself; `imagenette/320px-v2` is downloaded (342 MB); `folder` reads
`--config.data.name=folder:DIRECTORY`, train/CLASS/*.jpg and val/CLASS/*.jpg; `imagenet`
is imagenet2012 of TFDS, of whose training images 25,000 are kept for calibration.

Expected on ImageNet's validation images: 66.66 % top-1 and 86.99 % top-5 for BagNet-33
alone, measured by others with the published weights, which the usual recipe of ResNet-50
has trained; its paper has 87.6 % top-5. Nobody has published how well its map chooses
patches. No time was measured.
"""

from configs import anchornet, common

LOCALIZER = {data: "bagnet33" for data in common.DATA} | {"plates": "bagnet33_small"}
SIZE = 95  # px, the patches of AnchorNet
# As configs/anchornet.py's, save on plates, where it costs more per image.
PLATES = (32, 1.6, 0.1)  # batch size, epochs, learning rate


def get_config(argument="plates,resnet10"):
    """Return the pipeline on DATA with NETWORK, which `argument` names."""
    data, network = common.choose(argument, data=common.DATA, network=common.ANY)
    config = common.on(data)
    stages = anchornet.trainings(config, data, network, LOCALIZER[data])
    localizer = stages["localizer"]
    if data == "plates":
        localizer.batch_size, localizer.epochs, localizer.optimizer.learning_rate = (
            PLATES
        )
    elif data == "imagenet":  # as the published ones, not as AnchorNet
        localizer.update(anchornet.lengths(data, "full_image"))
    stages["patch"].view.size = SIZE
    return common.pipeline(
        config,
        stages,
        anchornet.method("localizer", "glance", "patch", size=SIZE),
        anchornet.references(),
    )
