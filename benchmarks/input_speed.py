"""Images per second that one processor core decodes, crops and resizes for training.

    python benchmarks/input_speed.py --device-images-per-second 1000

Draws JPEGs of 500x375 pixels and about 100 KB, ImageNet's mean, makes imagenet2012 of
TFDS from them and reads it as training does. Give what one device trains per second:
the last line says how many cores feed how many devices. Writes results/input_speed.json
beside this file.
"""

import argparse
import io
import math
import os
import pathlib
import platform
import tarfile
import tempfile
import time

import numpy as np
import tensorflow as tf
from PIL import Image

from anchornet_jax.data import loading
from anchornet_jax.runtime import files

RESULTS = pathlib.Path(__file__).parent / "results" / "input_speed.json"
SIZE = (500, 375)  # pixels, width and height
CELLS = (4, 16, 64, 256)  # random colours along each side, coarse to fine, like a photo


def photo(rng: np.random.Generator) -> bytes:
    """Return a JPEG file with details of all sizes."""
    total = np.zeros((SIZE[1], SIZE[0], 3))
    for cells in CELLS:
        noise = rng.integers(256, size=(cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
        total += (np.asarray(layer) - 127.5) / cells**0.25
    file = io.BytesIO()
    pixels = np.clip(127.5 + total, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


def write_tar(path, files: dict[str, bytes]) -> None:
    """Write a tar file of {name: content}."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def prepare(directory: pathlib.Path, images: int) -> loading.Source:
    """Make imagenet2012 from archives that hold `images` training images."""
    rng = np.random.default_rng(0)
    drawn = [photo(rng) for _ in range(min(images, 256))]  # drawing is slow
    print(f"mean file size {np.mean([len(d) for d in drawn]) / 1e3:.0f} KB")
    files = {f"n01440764_{i}.JPEG": drawn[i % len(drawn)] for i in range(images)}
    write_tar(directory / "class.tar", files)
    archive = (directory / "class.tar").read_bytes()
    write_tar(directory / "ILSVRC2012_img_train.tar", {"n01440764.tar": archive})
    validation = {"ILSVRC2012_val_00000001.JPEG": drawn[0]}
    write_tar(directory / "ILSVRC2012_img_val.tar", validation)
    return loading.prepare(
        "imagenet2012", data_dir=str(directory), manual_dir=str(directory)
    )


def measure(source: loading.Source, images: int, batch_size: int) -> dict[str, float]:
    """Return images per second, and per second of processor time.

    The second does not depend on what else the machine does.
    """
    batches = loading.training(source, "train", batch_size=batch_size, seed=0)
    next(batches)  # opens files, fills buffers
    steps = images // batch_size
    begun, worked = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(batches)
    count = steps * batch_size
    return {
        "images_per_second": count / (time.perf_counter() - begun),
        "images_per_core_second": count / (time.process_time() - worked),
    }


def advice(per_core: float, per_device: float, cores: int) -> str:
    """Say how many cores feed how many devices."""
    needed = per_device / per_core
    fed = math.floor(cores / needed)
    return (
        f"{math.ceil(needed)} cores feed one device of {per_device:.0f} images/s, "
        f"{math.ceil(8 * needed)} feed eight; the {cores} cores here feed "
        + (f"{fed}" if fed else f"{100 * cores / needed:.0f} % of one")
    )


def processor() -> str:
    """Return the processor's name."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Print the speeds and the advice, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device-images-per-second", type=float, default=1000)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        source = prepare(pathlib.Path(directory), options.images)
        speed = measure(source, options.images, options.batch)
    cores = len(os.sched_getaffinity(0))
    line = advice(
        speed["images_per_core_second"], options.device_images_per_second, cores
    )
    print(
        f"{speed['images_per_second']:.0f} images/s on {cores} cores, "
        f"{speed['images_per_core_second']:.0f} per core\n{line}"
    )
    about = {
        "processor": processor(),
        "cores": cores,
        "tensorflow": tf.__version__,
        **{name: value for name, value in vars(options).items() if name != "output"},
        **speed,
        "advice": line,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, about)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
