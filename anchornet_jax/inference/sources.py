"""Where the images of the early-exit engine come from: an array or an iterator."""

import jax
import numpy as np


class StreamError(RuntimeError):
    """A stream broke; the results of all images before that were delivered."""


class Array:
    """The images of an array; those on a device stay there."""

    error = None

    def __init__(self, images, size):
        shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
        if shape is None or shape[1:] != (size, size, 3) or dtype != np.uint8:
            found = type(images).__name__ if shape is None else f"{dtype} {list(shape)}"
            raise ValueError(
                f"`images` are {found}; needed: uint8 [B, {size}, {size}, 3]"
            )
        self._images, self.count, self.next = images, len(images), 0

    @property
    def open(self) -> bool:
        return self.next < self.count

    def take(self, count) -> tuple[np.ndarray, jax.Array]:
        """Return the next numbers [b] and a full batch of pixels that begins with them."""
        numbers = np.arange(self.next, min(self.next + count, self.count))
        self.next += len(numbers)
        if isinstance(self._images, jax.Array):
            return numbers, _rows(self._images, np.resize(numbers, count))
        pixels = self._images[numbers[0] : numbers[-1] + 1]
        return numbers, _full(pixels, count)


class Listed:
    """Images of any sizes, which stay where they are."""

    error = None

    def __init__(self, images):
        for number, image in enumerate(images):
            if not _any_size(image):
                raise ValueError(
                    f"`images` item {number} is {_found(image)}; needed: {ANY_SIZE}"
                )
        self._images, self.count, self.next = images, len(images), 0

    @property
    def open(self) -> bool:
        return self.next < self.count

    def take(self, count) -> tuple[np.ndarray, list]:
        """Return the next numbers [b] and so many images."""
        numbers = np.arange(self.next, min(self.next + count, self.count))
        self.next += len(numbers)
        return numbers, [self._images[number] for number in numbers]


class Stream:
    """The images of an iterator, checked and numbered, until it ends or breaks.

    Of size None they are of any sizes, and a batch is a list of them.
    """

    def __init__(self, images, size):
        self._images, self._shape = (
            iter(images),
            None if size is None else (size, size, 3),
        )
        self.next, self.open, self.error = 0, True, None

    def take(self, count) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers [b] and a full batch of pixels; keep what went wrong."""
        taken = []
        while self.open and len(taken) < count:
            try:
                image = np.asarray(next(self._images))
            except StopIteration:
                self.open = False
            except Exception as error:  # noqa: BLE001, whatever the iterator raises
                self._break(StreamError(f"`images` raised at item {self.next}"), error)
            else:
                if not self._fits(image):
                    found, shape = _found(image), self._shape
                    wanted = ANY_SIZE if shape is None else f"uint8 {list(shape)}"
                    message = f"`images` item {self.next} is {found}; needed: {wanted}"
                    self._break(ValueError(message))
                else:
                    taken.append(image)
                    self.next += 1
        numbers = np.arange(self.next - len(taken), self.next)
        if self._shape is None:
            return numbers, taken
        pixels = np.array(taken, np.uint8).reshape(-1, *self._shape)
        return numbers, _full(pixels, count)

    def _fits(self, image):
        if self._shape is None:
            return _any_size(image)
        return image.shape == self._shape and image.dtype == np.uint8

    def _break(self, error, cause=None):
        error.__cause__ = cause
        self.open, self.error = False, error


ANY_SIZE = "uint8 [H, W, 3]"


def _any_size(image) -> bool:
    shape, dtype = getattr(image, "shape", ()), getattr(image, "dtype", None)
    return len(shape) == 3 and shape[2] == 3 and min(shape) > 0 and dtype == np.uint8


def _found(image) -> str:
    shape = getattr(image, "shape", None)
    return type(image).__name__ if shape is None else f"{image.dtype} {list(shape)}"


def _full(pixels, count):
    """Fill a batch up with black images."""
    if len(pixels) == count:
        return pixels
    batch = np.zeros((count, *pixels.shape[1:]), np.uint8)
    batch[: len(pixels)] = pixels
    return batch


@jax.jit
def _rows(images, numbers):
    return images[numbers]
