"""The whole method on ten classes of ImageNet: about an hour's work for one GPU.

    python main.py --config=configs/imagenette.py --workdir=runs/imagenette

Data: imagenette/320px-v2 of TFDS, 9,469 images to train on and 3,925 to test, downloaded
on the first run (342 MB). A folder of your own instead, with train/CLASS/*.jpg and
val/CLASS/*.jpg in it:

    python main.py --config=configs/imagenette.py --workdir=runs/mine \\
        --config.data.name=folder:/path/to/it --config.test_split=val

Ends with summary.json, report.html and figures in the run's directory. Expected
accuracy: the paper has no such run. Time: not measured; the lengths below are set for
an hour.
"""

from configs import common

TRAIN = {  # stage: (network, view, batch size, epochs, learning rate)
    "anchornet": ("anchornet", "full", 64, 40.0, 0.1),
    "full_image": ("resnet18", "full", 64, 40.0, 0.05),
    "glance": ("resnet18", "resized", 64, 15.0, 0.01),
    "patches": ("resnet18", "patches", 64, 15.0, 0.01),
}


def get_config():
    """Return a pipeline of four trainings and the evaluation."""
    config = common.get_config()
    config.data.name = "imagenette/320px-v2"
    config.train_split = "train[10%:]"
    config.calibration_split = "train[:10%]"
    config.test_split = "validation"
    config.batch_size = 64
    return common.pipeline(config, TRAIN)
