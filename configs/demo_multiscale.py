"""The method of 2020 on generated data: minutes on two CPU cores, no download.

    python main.py --config=configs/demo_multiscale.py --workdir=runs/demo_multiscale

Data: `plates/sizes`, digits that fill plates of 36 to 108 pixels, generated on the first
run. Three branches localise patches of 63, 95 and 111 pixels. Ends with summary.json,
report.html and figures, scales/summary.json (2020, Table 3) and analyses/ (Table 4,
Figures 3 to 6) in the run's directory.
"""

from configs import common

LOCALIZER = "anchornet_multiscale_third"
TRAIN = {  # stage: (network, view, batch size, epochs, learning rate)
    "anchornet": (LOCALIZER, "full", 16, 1.5, 0.02),
    "full_image": ("resnet10", "full", 32, 1.0, 0.1),
    "glance": ("resnet10", "resized", 32, 0.8, 0.05),
    "patches": ("resnet10", "patches", 32, 0.3, 0.05),
    "b63": ("resnet10", "patches", 32, 0.2, 0.05),
    "b95": ("resnet10", "patches", 32, 0.2, 0.05),
    "b111": ("resnet10", "patches", 32, 0.2, 0.05),
}
PROGRAMS = ("evaluate", "export", "scales", "analyses")


def get_config():
    """Return a pipeline of seven trainings, the evaluations and the export."""
    config = common.get_config()
    config.data.name = "plates/sizes"
    config.data.augment, config.data.flip, config.data.resize = "none", False, 0
    config.train_split = "train"
    config.calibration_split = "calibration"
    config.test_split = "test"
    config.batch_size = 50
    config.timing.images, config.timing.batch_size = 512, 16
    config.log_every_steps = 50
    config = common.pipeline(config, TRAIN, PROGRAMS)
    for size in (63, 95, 111):
        config.stages[f"b{size}"].view.update(branch=size, k=2)
    config.stages.scales.view.preset = "separate"
    config.stages.analyses.analysed_images = 200
    return config
