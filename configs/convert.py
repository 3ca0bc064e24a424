"""A network trained with PyTorch, as one that every config can start from.

    python main.py --config=configs/convert.py --config.source=resnet50-0676ba61.pth \
        --config.model=resnet50 --workdir=runs/resnet50

Data: none. Reads a `.pth`, `.pth.tar` or `.safetensors` file (the last with `pip install
safetensors`); PyTorch is not needed. Then `--config.init_from=runs/resnet50/network`.
"""

from configs import common


def get_config():
    """Return the defaults; `source` and `model` are to be given."""
    config = common.get_config()
    config.program = "convert"
    config.model = ""
    return config
