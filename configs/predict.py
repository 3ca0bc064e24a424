"""Images of one's own, classified by an export, with a picture of each.

    python main.py --config=configs/predict.py --workdir=runs/predict \
        --config.export=runs/demo/export --config.images='photos/*.jpg'

Data: JPEG, PNG and WebP files of any size. Writes predictions.jsonl and pictures/;
`--config.pictures=False` writes the lines alone, which is much faster.
"""

from configs import common


def get_config():
    """Return the program; `config.export` and `config.images` are yours to give."""
    config = common.get_config()
    config.program = "predict"
    config.batch_size = 1  # larger is faster on GPU and TPU, but images then wait
    return config
