"""Deterministic parameters and images for parity checks against published PyTorch networks.

Anyone can rebuild them with NumPy alone, so a golden file stores only a network's outputs.
"""

import zlib

import numpy as np


def generator(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode())))


def tensor(
    seed: int, name: str, shape: tuple[int, ...], gain: float = 1.0
) -> np.ndarray:
    """Value of the state-dict entry `name` in PyTorch layout (conv OIHW, linear OI), float32.

    `gain` scales kernels only; the AnchorNet golden uses 1.5 so that its maps vary in space.
    """
    rng = generator(seed, name)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith("running_mean"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) >= 2:  # convolution or linear kernel: He-scaled by fan-in
        fan_in = int(np.prod(shape[1:]))
        return (gain * rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(
            np.float32
        )
    if name.endswith("weight"):  # normalisation scale
        return rng.uniform(0.5, 1.0, shape).astype(np.float32)
    return (0.05 * rng.standard_normal(shape)).astype(np.float32)  # any bias


def image(seed: int, size: int = 224) -> np.ndarray:
    """uint8 [size, size, 3]: coarse blobs plus pixel noise."""
    rng = generator(seed, "image")
    cells = -(-size // 32)
    coarse = rng.standard_normal((cells, cells, 3)) * 50 + 128
    full = np.kron(coarse, np.ones((32, 32, 1)))[:size, :size]
    return np.clip(full + rng.standard_normal((size, size, 3)) * 10, 0, 255).astype(
        np.uint8
    )


MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalised(images: np.ndarray) -> np.ndarray:
    """uint8 [..., H, W, 3] -> float32, ImageNet mean and standard deviation."""
    return (images.astype(np.float32) / 255.0 - MEAN) / STD
