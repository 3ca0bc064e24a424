"""Large images of plates: sizes, boxes, and that small ones stay as they were."""

import numpy as np

from anchornet_jax.data import plates


def test_large_image():
    rng = np.random.default_rng(0)
    fonts = plates.FONTS["test"]
    image, box = plates.draw_large(rng, digit=7, fonts=fonts, sides=(512, 1024))
    height, width = image.shape[:2]
    assert image.dtype == np.uint8 and 512 <= min(height, width)
    assert max(height, width) <= 1024
    top, left, bottom, right = box
    assert bottom - top == right - left and 36 <= bottom - top <= 108
    inside = image[top:bottom, left:right].astype(int)
    assert (inside.min(-1) > 250).mean() > 0.4  # a white plate
    assert (inside.max(-1) < 100).any()  # with dark ink
    outside = image.astype(int)
    outside[top:bottom, left:right] = 255
    assert (outside.min(-1) > 250).any() and outside.max(-1).min() > 40  # no ink


def test_same_seed_same_image():
    arguments = {"digit": 3, "fonts": plates.FONTS["train"], "sides": (512, 600)}
    one, other = (
        plates.draw_large(np.random.default_rng(5), **arguments) for _ in range(2)
    )
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_config():
    configs = {config.name: config for config in plates.Plates.BUILDER_CONFIGS}
    assert configs["large"].sides == (512, 4096)
    square = configs["large_1024"]
    image, _ = square.draw(
        np.random.default_rng(0), digit=1, fonts=plates.FONTS["train"]
    )
    assert image.shape == (1024, 1024, 3)
    counts = [(c.train, c.calibration, c.test) for c in (configs["large"], square)]
    assert counts == [(2000, 500, 500)] * 2
