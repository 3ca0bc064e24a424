"""Images of one's own, classified by an export, with a picture of each.

    python main.py --config=configs/predict.py --workdir=runs/predict \
        --config.export=runs/demo/export --config.images='photos/*.jpg'

Data: JPEG, PNG and WebP files of any size. `config.images` is a pattern, a folder, or a
text file with a path, pattern or folder in each line (`photos.find`). Writes
predictions.jsonl, summary.json and pictures/; `--config.pictures=False` writes the lines
alone, which is much faster. A rule was fitted to its budget on calibration images; with
`--config.hold=macs` it moves so that the mean of these images comes out at the budget, and
with `--config.hold=ms --config.budget=3.5` at so many milliseconds. Several hosts, started
as a training is (see the README), take an equal share of the images each and write
host_0_of_2/ and so on.
"""

from configs import common


def get_config():
    """Return the program; `config.export` and `config.images` are yours to give."""
    config = common.get_config()
    config.program = "predict"
    config.batch_size = 1  # larger is faster on GPU and TPU, but images then wait
    return config
