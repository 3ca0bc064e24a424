"""The photo demo: small things on runways, from ImageNet weights, on a laptop.

    python main.py --config=configs/photos.py --config.data.manual_dir=DIRECTORY \
        --workdir=runs/photos
    make photos FOD=DIRECTORY

The pipeline of configs/folder.py:laptop with a localiser that is taught. AnchorNet from
scratch learns the concrete of 2,320 frames by heart; so `localizer` comes after
`full_image`, which shows it what is in a frame and where (`objectives.taught`), and its
heatmap is that of any class. All networks see frames turned, in other light and with noise:
without that the full-image network is right on 99 % of the training frames after two passes.
Full-image, glance and patch network start from the same weights of ImageNet, see every
frame equally often, and do not start from each other. Stopped, the same command goes on.

Data: DIRECTORY holds FOD-A, unpacked or as a zip file, see `data.fod_a`: 3,760 of its
frames, 18 classes, split by video run. A folder of one's own with `train`, `calibration`
and `test` takes its place by `--config.data.name=folder:FOLDER`; with boxes.json in it, box
coverage is scored. `make photos` sees by that file which of the two it is. Frames of 300
pixels are seen at 224: at 300 the full image costs 1.8 times as much, and fewer objects
fit into a patch of 95; the accuracy there was not measured.

Expected on the 720 test frames, video runs that no network has seen (one run, seed 0):
full image 56.5 %; glance 42.1 %, with one patch 57.9 % (a random one: 41.9 %), the patch
holds 78.4 % of the box. Standard error 1.8 points. `--config.fusion=fitted` gains one. Without
turns, light and noise, half as long: 60.4 %, 36.8 %, 40.8 % (36.9 %), with a localiser that
was chosen by its accuracy. Time: 40 minutes on one CPU core beside another training, of which
10 the full-image network, 14 the localiser, 5 the glance, 8 the patches; the shorter form
took 12 minutes on two idle cores.
"""

from configs import common, folder

LENGTHS = {  # stage: (batch size, epochs, learning rate), cosine after a short warm-up
    "full_image": (32, 8.0, 0.05),
    "localizer": (32, 10.0, 0.1),
    "glance": (32, 8.0, 0.05),
    "patch": (32, 8.0, 0.05),
}


def get_config(argument=""):
    """Return the pipeline on FOD-A; there is nothing to choose."""
    if argument:
        raise ValueError(f"`argument` is {argument!r}; nothing follows the file")
    config = common.on("folder")
    config.data.name = "fod_a"
    config.train_split, config.calibration_split = "train", "calibration"
    config.test_split, config.heatmap = "test", "agnostic"
    # Things lie as they fell; without it all networks know every frame after two passes.
    config.data.update(turns=True, flip=True, colour=0.3, noise=10.0)
    trainings = folder.trainings(config, "laptop", LENGTHS)
    trainings["localizer"].teacher = common.trained("full_image")
    return folder.pipeline(config, trainings)
