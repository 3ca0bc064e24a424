"""The photo demo: small things on runways, from ImageNet weights, on a laptop.

    python main.py --config=configs/photos.py --config.data.manual_dir=DIRECTORY \
        --workdir=runs/photos
    make photos FOD=DIRECTORY

The pipeline of configs/folder.py:laptop with a localiser that is taught. AnchorNet from
scratch learns the concrete of 2,320 frames by heart; so `localizer` comes after
`full_image`, which shows it what is in a frame and where (`objectives.taught`), it sees
frames turned, in other light and with noise, and its heatmap is that of any class.
Full-image, glance and patch network start from the same weights of ImageNet, see every
frame equally often, and do not start from each other. Stopped, the same command goes on.

Data: DIRECTORY holds FOD-A, unpacked or as a zip file, see `data.fod_a`: 3,760 of its
frames, 18 classes, split by video run. A folder of one's own with `train`, `calibration`
and `test` takes its place by `--config.data.name=folder:FOLDER`; with boxes.json in it, box
coverage is scored. `make photos` sees by that file which of the two it is. Frames of 300
pixels are seen at 224: at 300 the full image costs 1.8 times as much, and fewer objects
fit into a patch of 95; the accuracy there was not measured.

Time: not measured as a whole; meant for at most 40 minutes on two CPU cores. On two that
were shared with other work a step of 32 frames took 2.5 s in `full_image`, 0.45 s in
`glance` and 0.9 s in `localizer`, at 72 steps an epoch.
"""

from configs import common, folder

LENGTHS = {  # stage: (batch size, epochs, learning rate), cosine after a short warm-up
    "full_image": (32, 4.0, 0.05),
    "localizer": (32, 8.0, 0.1),
    "glance": (32, 4.0, 0.05),
    "patch": (32, 4.0, 0.05),
}


def get_config(argument=""):
    """Return the pipeline on FOD-A; there is nothing to choose."""
    if argument:
        raise ValueError(f"`argument` is {argument!r}; nothing follows the file")
    config = common.on("folder")
    config.data.name = "fod_a"
    config.train_split, config.calibration_split = "train", "calibration"
    config.test_split, config.heatmap = "test", "agnostic"
    trainings = folder.trainings(config, "laptop", LENGTHS)
    teach(trainings["localizer"])
    return folder.pipeline(config, trainings)


def teach(stage) -> None:
    """Let the full-image network teach a localiser that meets more than is there."""
    stage.teacher = common.trained("full_image")
    stage.data.update(turns=True, flip=True, colour=0.3, noise=10.0)
