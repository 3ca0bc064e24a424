"""The whole method on generated data: minutes on two CPU cores, no download.

    python main.py --config=configs/demo.py --workdir=runs/demo

Data: `plates`, a digit on one of three plates on a large canvas, generated on the first
run. Ends with summary.json, report.html, figures and export/ in the run's directory.
"""

from configs import common

TRAIN = {  # stage: (network, view, batch size, epochs, learning rate)
    "anchornet": ("anchornet", "full", 32, 1.8, 0.2),
    "full_image": ("resnet10", "full", 32, 1.6, 0.1),
    "glance": ("resnet10", "resized", 32, 1.2, 0.05),
    "patches": ("resnet10", "patches", 32, 0.6, 0.05),
}


def get_config():
    """Return a pipeline of four trainings, the evaluation and the export."""
    config = common.get_config()
    config.data.name = "plates"
    config.data.augment, config.data.flip, config.data.resize = "none", False, 0
    config.train_split = "train"
    config.calibration_split = "calibration"
    config.test_split = "test"
    config.batch_size = 64
    config.timing.images, config.timing.batch_size = 512, 16
    config.log_every_steps = 50
    return common.pipeline(config, TRAIN)
