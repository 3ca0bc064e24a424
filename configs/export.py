"""One evaluation as a directory that stands alone, for engine, page and other programs.

    python main.py --config=configs/export.py --config.evaluation=runs/demo/evaluate \
        --workdir=runs/export

Data: none. The method, its networks, preprocessing, classes and rules are those of the
evaluation; what is trained anew since then is refused.
"""

from configs import common


def get_config():
    """Return the program; `config.evaluation` is yours to give."""
    config = common.get_config()
    config.program = "export"
    return config
