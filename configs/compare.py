"""Finished evaluations, of any methods, in one figure and one table.

    python main.py --config=configs/compare.py --workdir=runs/compare \
        --config.runs=runs/demo,runs/other

Data: what the evaluations in `config.runs` left; each is the directory of a pipeline or
of an `evaluate`, or a pattern, `--config.runs='runs/*/'`. Writes compare.html,
compare.json and the figures, as PNG and SVG. `--config.published=imagenet2012` adds what
the papers of AnchorNet and its rivals have published, as Figures 5 and 6 of 2022 show it.
Milliseconds are those of each evaluation; `--config.remeasure` times all of them again, in
turn, on this machine, with the images of the first one's test split.
"""

from configs import common


def get_config():
    """Return the program; `config.runs` is yours to give."""
    config = common.get_config()
    config.program = "compare"
    config.timing.images, config.timing.batch_size = 512, 16
    return config
