"""One's own image files, as the networks take them; needs Pillow, not TensorFlow.

JPEG, PNG and WebP of any size and mode: the EXIF orientation is applied, for a photo
is meant to be seen upright; what is transparent becomes white. The size is reached as
evaluation reaches it: the short side is resized, the square at the centre cut out.

    paths = photos.find("photos/*.jpg")  # or a folder, or a text file of paths
    image = photos.read(paths[0], image_size=224, resize=256)  # uint8 [224, 224, 3]
"""

import collections
import contextlib
import glob
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator
from concurrent import futures

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")  # of what is taken from a folder
LIST = ".txt"  # ending of a text file of paths
MAX_PIXELS = 8192**2  # of a file: 200 MB once decoded, for each of those read ahead
THREADS = 4  # that read ahead of the networks
LARGE_AHEAD = 2  # photos read ahead where they are taken as they are
SIXTEEN_BITS = ("I", "I;16", "I;16B")  # modes of grey PNG files


def find(what: str) -> list[pathlib.Path]:
    """Return the image files that a text means; what it means decides their order.

    A folder means the images in it and in folders in it, by their endings, sorted; hidden
    ones are left out. A file that ends with `.txt` has one of the others in each line. All
    else is a pattern such as `photos/*.jpg`, which means all but folders that match it,
    sorted; `**` stands for folders of any depth. Several have commas between them, unless
    there is a file with that very name. What is no file, such as a link that leads nowhere,
    is among them: `read` says what is wrong with it.

    Raises:
      ValueError: if one of them means nothing.
    """
    parts = what.split(",") if "," in what and not _names(what) else [what]
    found = [_found(part.strip() if len(parts) > 1 else part) for part in parts]
    return list(dict.fromkeys(path for paths in found for path in paths))


def _found(what: str) -> list[pathlib.Path]:
    """Return what one pattern, folder or text file means."""
    path = pathlib.Path(os.path.expanduser(what or "\0"))
    if what.lower().endswith(LIST) and os.path.isfile(path):
        lines = os.fsdecode(path.read_bytes()).splitlines()
        listed = [_listed(line.strip()) for line in lines if line.strip()]
        found = [one for paths in listed for one in paths]
    elif os.path.isdir(path):
        found = _in_folder(path)
    else:
        found = [pathlib.Path(n) for n in _names(what) if not os.path.isdir(n)]
    if not found:
        means = "holds no images" if os.path.exists(path) else "matches nothing"
        raise ValueError(f"`images` is {what!r}, which {means}")
    return found


def _listed(line: str) -> list[pathlib.Path]:
    """Return what a line of a text file means: a file that is missing is one as well."""
    path = pathlib.Path(os.path.expanduser(line))
    if os.path.isdir(path) or not (os.path.lexists(path) or not glob.has_magic(line)):
        return _found(line)
    return [path]


def _names(pattern: str) -> list[str]:
    return sorted(glob.glob(os.path.expanduser(pattern), recursive=True))


def _in_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the images in a folder and in those inside, without the hidden ones."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if n[0] != "." and n != "__MACOSX")
        shown = (n for n in names if n[0] != "." and n.lower().endswith(ENDINGS))
        found += [pathlib.Path(root, name) for name in sorted(shown)]
    return found


def read(
    file,
    *,
    image_size: int,
    resize: int,
    whole: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decode an image file to uint8 [image_size, image_size, 3].

    Args:
      file: path, or a binary file.
      image_size: pixels; 0: the whole image as it is, [H, W, 3].
      resize: pixels of the short side before the cut. 0: data that had the size
        already, see `loading.prepare`; then the short side becomes `image_size`.
      whole: squeeze all of it into the square instead, see there.
      max_pixels: of the file; a small one may claim more than memory holds.

    Raises:
      ValueError: if it cannot be decoded; the message says why.
    """
    try:
        with _opened(file) as opened, Image.open(opened, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"it has {image.width}x{image.height} pixels; allowed are "
                    f"{max_pixels} together, see `max_pixels`"
                )
            image = _rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
    except ValueError:
        raise
    except OSError as error:
        if error.strerror is None:  # Pillow's
            raise ValueError(f"it is damaged: {error}") from error
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    except Exception as error:  # what a broken file makes Pillow raise
        raise ValueError(f"it is damaged: {error}") from error
    if not image_size:
        return np.asarray(image)
    if whole:
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.asarray(image)
    return _centre(image, image_size, resize or image_size)


@contextlib.contextmanager
def _opened(file):
    """Open a path, unless it is a pipe or a device, on which reading could hang."""
    if not isinstance(file, (str, os.PathLike)):
        yield file
        return
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        yield opened


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BITS:  # `convert` would clip them to 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _centre(image: Image.Image, size: int, resize: int) -> np.ndarray:
    """Do what `decode.centre` does, and resize no pixel that is cut off."""
    sides = np.float32(image.size)  # (width, height)
    scaled = np.round(sides * np.float32(resize) / sides.min())
    corner = (scaled - size) // 2
    scale = sides / scaled.astype(float)
    box = (*(corner * scale), *((corner + size) * scale))
    box = np.minimum(box, (*image.size, *image.size)).tolist()
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def read_all(
    paths: Iterable[pathlib.Path], **options
) -> Iterator[tuple[pathlib.Path, np.ndarray | ValueError]]:
    """Yield every path with its image, or the error that `read` raised.

    Threads decode the next ones meanwhile; `options` are those of `read`. Of photos that
    are taken as they are, which may be large, fewer are read ahead.
    """
    ahead = 2 * THREADS if options.get("image_size") else LARGE_AHEAD

    def attempt(path):
        try:
            return path, read(path, **options)
        except ValueError as error:
            return path, error

    with futures.ThreadPoolExecutor(THREADS) as pool:
        waiting = collections.deque()
        for path in paths:
            waiting.append(pool.submit(attempt, path))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
