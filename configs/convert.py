"""A network trained with PyTorch, as one that every config can start from.

    python main.py --config=configs/convert.py --config.source=resnet50-0676ba61.pth \
        --config.model=resnet50 --workdir=runs/resnet50
    python main.py --config=configs/convert.py --config.source=final.pth.tar \
        --config.method.name=gfnet --config.model=resnet50 --workdir=runs/published

Data: none. Reads a `.pth`, `.pth.tar` or `.safetensors` file (the last with `pip install
safetensors`); PyTorch is not needed. Then `--config.init_from=runs/resnet50/network`.
The second command reads a published file of GFNet, which has all its networks: directories
`glance`, `patch`, `classifier` and `policy`, as in a stage of configs/gfnet.py, in the
place of which they are `given`.
"""

from configs import common


def get_config():
    """Return the defaults; `source` and `model` are to be given."""
    config = common.get_config()
    config.program = "convert"
    config.model = ""
    return config
