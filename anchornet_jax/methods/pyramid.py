"""A large image in host memory, and views of any part of it at any scale; NumPy alone.

A pixel of a view is the mean over those of the image that it covers: nothing is missed,
and a view at scale 1 is a copy. The mean is taken on the last of the halved copies that is
not smaller than the view, which blurs a little between powers of two. The copies are made
when a view first needs one, and together take a third of the image's memory: after that a
view costs the same at any scale.

    image = Pyramid(pixels)                      # uint8 [H, W, 3]
    image.view((0, 0, 4096, 4096), 224)          # uint8 [224, 224, 3], the whole
    image.view((700, 90, 795, 185), 95)          # pixel for pixel
"""

import functools

import numpy as np

STRIP = 64  # rows of the result that are halved at once


class Pyramid:
    """An image and its halved copies.

    Attributes:
      shape: (height, width) in pixels.
    """

    def __init__(self, image: np.ndarray):
        """Keep an image, uint8 [H, W, 3]; nothing is copied.

        Raises:
          ValueError: for anything else.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"`image` is {image.dtype} {list(image.shape)}; needed: uint8 [H, W, 3]"
            )
        self._levels, self.shape = [image], image.shape[:2]

    def view(self, box, size: int) -> np.ndarray:
        """Return a part of the image, brought to [size, size, 3] uint8.

        Args:
          box: (top, left, bottom, right) in pixels, inside the image; an empty one
            makes a black view.
          size: of the view in pixels.
        """
        top, left, bottom, right = map(int, box)
        if bottom <= top or right <= left:
            return np.zeros((size, size, 3), np.uint8)
        level = max(0, int(np.log2(min(bottom - top, right - left) / size)))
        image = self._level(level)
        (low, high), (begin, end) = (
            _span(*ends, 2**level, n)
            for ends, n in zip(((top, bottom), (left, right)), image.shape)
        )
        part = image[low:high, begin:end]
        if part.shape[:2] == (size, size):
            return part
        rows, columns = (_means(n, size) for n in part.shape[:2])
        part = part.astype(np.float32)
        part = (rows @ part.reshape(len(part), -1)).reshape(size, -1, 3)
        part = np.matmul(columns[None], part)
        return np.rint(part).astype(np.uint8)

    def _level(self, level):
        while len(self._levels) <= level:
            self._levels.append(_halved(self._levels[-1]))
        return self._levels[level]


def _span(low, high, factor, count):
    """Return where a span of pixels is in a copy of `count` pixels, never empty."""
    begin = min(round(low / factor), count - 1)
    return begin, max(begin + 1, min(round(high / factor), count))


@functools.lru_cache(256)
def _means(before: int, after: int) -> np.ndarray:
    """Return the matrix [after, before] whose rows average what each covers."""
    edges = np.linspace(0, before, after + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(before)
    covered = np.minimum(high, pixels + 1) - np.maximum(low, pixels)
    covered = np.maximum(covered, 0)
    return (covered / covered.sum(1, keepdims=True)).astype(np.float32)


def _halved(image):
    """Return the means of 2 x 2 pixels, in strips: an image of 200 MB needs no copy."""
    height, width = (max(1, n // 2) for n in image.shape[:2])
    tall, wide = (n > 1 for n in image.shape[:2])
    result = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, STRIP):
        rows = image[2 * top : 2 * (top + STRIP)] if tall else image
        rows = rows[: 2 * (len(rows) // 2)] if tall else rows
        total = rows[0::2].astype(np.uint16) + (rows[1::2] if tall else rows)
        for channel in range(3):  # long inner loops: three times as fast
            first = total[:, 0 : 2 * width : 2, channel]
            other = total[:, 1 : 2 * width : 2, channel] if wide else first
            result[top : top + STRIP, :, channel] = (first + other + 2) >> 2
    return result
