"""Image files: every kind becomes the pixels that evaluation would make of them."""

import io

import numpy as np
import pytest
from PIL import Image

from anchornet_jax.data import photos

SIZE = 32  # px


def pixels(height, width, channels=3, seed=0):
    """Return smooth noise: a lossy format should keep it."""
    coarse = np.random.default_rng(seed).integers(
        0, 256, (4, 4, channels), dtype=np.uint8
    )
    layers = [
        Image.fromarray(coarse[..., c]).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for c in range(channels)
    ]
    return np.stack([np.asarray(layer) for layer in layers], -1)


def encoded(image, format="PNG", **kwargs):
    file = io.BytesIO()
    image.save(file, format, **kwargs)
    file.seek(0)
    return file


def read(image, format="PNG", resize=0, **kwargs):
    return photos.read(encoded(image, format, **kwargs), image_size=SIZE, resize=resize)


@pytest.mark.parametrize(("format", "error"), [("PNG", 0), ("WEBP", 9), ("JPEG", 9)])
def test_formats(format, error):
    expected = pixels(SIZE, SIZE)
    found = read(Image.fromarray(expected), format)
    assert found.dtype == np.uint8 and found.shape == (SIZE, SIZE, 3)
    assert np.abs(found.astype(int) - expected).mean() <= error


@pytest.mark.parametrize("resize", [0, 40])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (90, 61), (21, 47), (64, 65)])
def test_size_is_reached_as_evaluation_reaches_it(height, width, resize):
    """Against the TensorFlow code that evaluation and training data go through."""
    from anchornet_jax.data import decode

    original = pixels(height, width)
    expected, _ = decode.centre(original, SIZE, resize or SIZE)
    found = read(Image.fromarray(original), resize=resize)
    # Pillow rounds to whole numbers between the two directions.
    assert np.abs(found.astype(int) - expected.numpy()).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = pixels(SIZE, SIZE)
    stored = {  # how a camera stores that picture; Exif 2.3, tag 274
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    found = read(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(found, upright)


def test_grey():
    grey = pixels(SIZE, SIZE, 1)
    np.testing.assert_array_equal(
        read(Image.fromarray(grey[..., 0])), np.repeat(grey, 3, -1)
    )
    deep = Image.fromarray(grey[..., 0].astype(np.uint16) * 257)  # 16 bits
    np.testing.assert_array_equal(read(deep), np.repeat(grey, 3, -1))


def test_transparent_becomes_white():
    image = np.concatenate(
        [pixels(SIZE, SIZE), np.full((SIZE, SIZE, 1), 255, np.uint8)], -1
    )
    image[:, :8, 3] = 0
    image[:, 8:16, 3] = 51  # a fifth
    found = read(Image.fromarray(image)).astype(int)
    assert (found[:, :8] == 255).all()
    np.testing.assert_allclose(
        found[:, 8:16], 0.2 * image[:, 8:16, :3] + 0.8 * 255, atol=1
    )
    np.testing.assert_array_equal(found[:, 16:], image[:, 16:, :3])


def test_palette_with_a_transparent_colour():
    image = Image.fromarray(np.eye(SIZE, dtype=np.uint8)).convert("P")
    image.putpalette([9, 9, 9, 200, 0, 0])
    found = read(image, transparency=0)
    expected = np.where(np.eye(SIZE)[..., None], [200, 0, 0], 255)
    np.testing.assert_array_equal(found, expected)


def test_thin_images_cost_little():
    """A resize before the cut would make 32 x 640,000 pixels of this."""
    assert (
        read(Image.new("RGB", (20_000, 1), "red")).tolist()
        == [[[255, 0, 0]] * SIZE] * SIZE
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is none of JPEG, PNG, WEBP"),
        (b"text", "it is none of"),
        (encoded(Image.new("RGB", (9, 9)), "GIF").read(), "it is none of"),
        (encoded(Image.fromarray(pixels(64, 64)), "JPEG").read()[:800], "truncated"),
        (encoded(Image.fromarray(pixels(64, 64))).read()[:-900], "it is damaged"),
    ],
)
def test_what_cannot_be_read(content, message):
    with pytest.raises(ValueError, match=message):
        photos.read(io.BytesIO(content), image_size=SIZE, resize=0)


def test_too_many_pixels():
    """A small file may claim more than memory holds; the numbers are said."""
    image = encoded(Image.fromarray(pixels(10, 10)))
    message = "it has 10x10 pixels; allowed are 99 together, see `max_pixels`"
    with pytest.raises(ValueError, match=message):
        photos.read(image, image_size=SIZE, resize=0, max_pixels=99)
    photos.read(image, image_size=SIZE, resize=0, max_pixels=100)


def test_find(tmp_path):
    for name in ("b.jpg", "a.jpg", "deep/er/c.jpg", "d.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def names(pattern):
        found = photos.find(f"{tmp_path}/{pattern}")
        return [str(p.relative_to(tmp_path)) for p in found]

    assert names("*.jpg") == ["a.jpg", "b.jpg"]
    assert names("**/*.jpg") == ["a.jpg", "b.jpg", "deep/er/c.jpg"]
    assert names("*") == ["a.jpg", "b.jpg", "d.txt"]
    assert names("deep") == ["deep/er/c.jpg"]
    assert names(f"b.jpg,{tmp_path}/deep, {tmp_path}/*.jpg") == [
        "b.jpg",
        "deep/er/c.jpg",
        "a.jpg",
    ]
    (tmp_path / "empty").mkdir()
    for pattern, message in (
        ("*.png", "matches nothing"),
        ("empty", "holds no images"),
    ):
        with pytest.raises(ValueError, match=f"`images` is .*{message}"):
            names(pattern)


def test_find_in_a_folder(tmp_path):
    """Images alone, in folders of any depth; nothing that is hidden."""
    wanted = ["a.JPG", "b/c.webp", "b/d/e.png", "z.jpeg"]
    hidden = (".git/a.jpg", "__MACOSX/a.jpg", "b/._c.webp", ".a.jpg", "notes.txt")
    for name in (*wanted, *hidden):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [str(path.relative_to(tmp_path)) for path in photos.find(str(tmp_path))]
    assert sorted(found) == wanted


def test_find_by_a_text_file(tmp_path, monkeypatch):
    """In its order; a missing file is named by `read`, a pattern that fails here."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.jpg", "deep/c.jpg", "d[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    paths = tmp_path / "paths.txt"
    paths.write_text("gone.jpg\n\nb.jpg\r\ndeep\n *.jpg \nd[1].jpg\n")
    found = [str(path) for path in photos.find("paths.txt")]
    assert found == ["gone.jpg", "b.jpg", "deep/c.jpg", "a.jpg", "d[1].jpg"]
    paths.write_text("*.png\n")
    with pytest.raises(
        ValueError, match=r"`images` is '\*.png', which matches nothing"
    ):
        photos.find("paths.txt")
    paths.write_text("\n")
    with pytest.raises(ValueError, match="paths.txt', which holds no images"):
        photos.find("paths.txt")
    (tmp_path / "x,y.jpg").touch()
    assert [str(path) for path in photos.find("x,y.jpg")] == ["x,y.jpg"]


def test_read_all_keeps_the_order_and_goes_on_after_an_error(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(30)]
    for n, path in enumerate(paths):
        Image.new("L", (SIZE, SIZE), n).save(path)
    paths[3].write_bytes(b"text")
    paths.insert(7, tmp_path / "missing.png")
    found = list(photos.read_all(paths, image_size=SIZE, resize=0))
    assert [path for path, _ in found] == paths
    bad = [n for n, (_, image) in enumerate(found) if isinstance(image, ValueError)]
    assert bad == [3, 7]
    for path, image in found:
        if isinstance(image, np.ndarray):
            assert (image == int(path.stem)).all()
