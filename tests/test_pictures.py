"""The pictures: heatmap and patches where they belong, inputs with their verdicts."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from anchornet_jax.figures import pictures, plots
from anchornet_jax.models.receptive_field import ReceptiveField
from tests import fake_results

CLASSES, EXITS = fake_results.summary().classes, fake_results.EXITS
INPUTS = 3
COLUMNS = INPUTS + 1  # axes of one image


@pytest.fixture(scope="module")
def figure():
    return pictures.examples(fake_results.arrays(), CLASSES, EXITS)


def row(figure, i):
    """Return the axes of image i: its picture, then its inputs."""
    return figure.axes[COLUMNS * i : COLUMNS * (i + 1)]


def rectangles(axes):
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return {
        (r.get_y(), r.get_x(), r.get_height(), r.get_width()): r.get_linestyle()
        for r in found
    }


@pytest.mark.parametrize(
    "box",
    [
        [40, 0, 60, 20],
        [0, 0, 49, 48],  # one pixel below the image
        [-1, 0, 20, 20],
        [8, 8, 8, 28],  # no pixel at all
        [28, 8, 8, 28],
        [-1, -1, -1, 3],
    ],
)
def test_boxes_outside_the_image_are_refused(box):
    arrays = fake_results.arrays()
    arrays["boxes"][1, 2] = box
    with pytest.raises(ValueError) as error:
        pictures.examples(arrays, CLASSES, EXITS)
    assert f"`boxes` holds {box}; in 48x48-px images" in str(error.value)


def test_heatmap_lies_on_the_centres_of_the_patches(figure):
    grey, heat = row(figure, 0)[0].images
    size, patch, stride = (
        fake_results.SIZE,
        fake_results.PATCH,
        fake_results.STRIDE,
    )
    assert list(grey.get_extent()) == [0, size, size, 0]
    left, right, bottom, top = heat.get_extent()
    cell = (right - left) / fake_results.GRID
    for j in range(fake_results.GRID):  # the middle of each cell, in px
        assert left + (j + 0.5) * cell == pytest.approx(j * stride + patch / 2)
    assert (top, bottom) == (left, right)
    np.testing.assert_array_equal(heat.get_array(), fake_results.arrays()["heatmap"][0])


def test_a_heatmap_that_ends_before_others():
    """What is NaN is not drawn, and keeps its share of the extent."""
    arrays = fake_results.arrays()
    arrays["heatmap"][0, 5:] = arrays["heatmap"][0, :, 6:] = np.nan
    arrays["heatmap"][1] = np.nan
    arrays["extent"][0] = 4, 6, 44, 40
    figure = pictures.examples(arrays, CLASSES, EXITS)
    heat = row(figure, 0)[0].images[1]
    assert list(heat.get_extent()) == [6, 40, 44, 4]
    hidden = np.ma.getmaskarray(heat.get_array())
    np.testing.assert_array_equal(hidden, np.isnan(arrays["heatmap"][0]))
    there = arrays["heatmap"][0, :5, :6]
    assert heat.get_clim() == (there.min(), there.max())
    assert len(row(figure, 1)[0].images) == 1  # the grey image alone


def test_patches_looked_at_are_solid_and_others_dashed(figure):
    p = fake_results.PATCH
    box = (6, 10, 14, 14)
    dashes = (0, (4, 3))
    for i, expected in enumerate(
        [
            {(4, 8, p, p): dashes, (28, 0, p, p): dashes},  # left after the glance
            {(0, 0, p, p): "-", (24, 24, p, p): dashes},
            {(8, 8, p, p): "-", (0, 28, p, p): "-"},
            {(12, 4, p, p): "-"},  # the other does not exist
        ]
    ):
        found = rectangles(row(figure, i)[0])
        assert found.pop(box) == ":"
        assert found == expected


def test_patches_are_numbered_in_their_exits_colour(figure):
    texts = {t.get_text(): t for t in row(figure, 2)[0].texts}
    assert set(texts) == {"1", "2"}
    for k, text in ((1, texts["1"]), (2, texts["2"])):
        face = text.get_bbox_patch().get_facecolor()
        assert np.allclose(
            face[:3], [int(plots.EXITS[k][n : n + 2], 16) / 255 for n in (1, 3, 5)]
        )


def test_inputs_are_the_pixels_the_networks_see(figure):
    arrays = fake_results.arrays()
    glance, first, second = (axes.images[0].get_array() for axes in row(figure, 1)[1:])
    np.testing.assert_array_equal(glance, arrays["image"][1])
    np.testing.assert_array_equal(first, arrays["image"][1, :20, :20])
    np.testing.assert_array_equal(second, arrays["image"][1, 24:44, 24:44])


def test_large_inputs_are_shrunk_alike():
    arrays = fake_results.arrays()
    image = np.kron(arrays["image"], np.ones((1, 7, 7, 1), np.uint8))  # 336 px
    boxes = np.where(arrays["boxes"] < 0, -1, 7 * arrays["boxes"])
    figure = pictures.examples(
        arrays | {"image": image, "boxes": boxes}, CLASSES, EXITS
    )
    glance, first, _ = (axes.images[0].get_array() for axes in row(figure, 1)[1:])
    np.testing.assert_array_equal(glance, image[1, ::3, ::3])  # 112 px remain
    np.testing.assert_array_equal(first, image[1, :140, :140])


def test_a_patch_that_does_not_exist_is_said_so(figure):
    last = row(figure, 3)[3]
    assert not last.images and last.texts[0].get_text() == "nothing"
    others = [axes for i in range(4) for axes in row(figure, i)[1:] if axes is not last]
    assert all(len(axes.images) == 1 for axes in others)


def test_verdicts(figure):
    labels = [axes.get_xlabel() for axes in row(figure, 1)[1:]]
    assert labels == ["✗ <b>owl & co\n62%", "✓ $dog_1$\n66%", "✓ $dog_1$\n70%"]
    found = [axes.xaxis.label.get_color() for axes in row(figure, 1)[1:]]
    # wrong, right, and pale after the exit
    assert found == [plots.VERDICTS[False][1], plots.VERDICTS[True][1], "#888888"]
    assert row(figure, 1)[0].get_ylabel() == "true: $dog_1$"


def test_one_exit_per_image(figure):
    for i, exit in enumerate(fake_results.arrays()["exit"]):
        marked = [
            t
            for t, axes in enumerate(row(figure, i)[1:])
            if "EXIT" in [text.get_text() for text in axes.texts]
        ]
        assert marked == [exit]
        pale = [
            axes.images[0].get_alpha() for axes in row(figure, i)[1:] if axes.images
        ]
        assert all((alpha == 1) == (t <= exit) for t, alpha in enumerate(pale))


def test_columns_and_legend(figure):
    assert [a.get_title() for a in row(figure, 0)] == [
        "",
        "glance",
        "look",
        "patch 2",
    ]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "evidence",
        "looked at",
        "not needed",
        "object, for scoring only",
        "right",
        "wrong",
    ]


def test_without_boxes_on_one_wide_image(tmp_path):
    arrays = {k: v[:1] if v.ndim else v for k, v in fake_results.arrays().items()}
    arrays["image"] = np.zeros((1, 48, 64, 3), np.uint8)
    arrays["heatmap"] = np.zeros((1, 8, 12))
    arrays["extent"] = np.array([[8, 8, 40, 56]])
    arrays["boxes"][0, 0] = [0, 0, 48, 64]
    del arrays["box"]
    figure = pictures.examples(arrays, CLASSES, EXITS)
    assert len(rectangles(figure.axes[0])) == 2
    assert list(figure.axes[0].images[1].get_extent()) == [8, 56, 40, 8]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "object, for scoring only" not in labels
    plots.save(figure, tmp_path / "one")  # class names with $ and _ are no formulas
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_a_method_that_chooses_nothing():
    arrays = fake_results.arrays()
    for name in ("boxes", "heatmap", "extent", "box"):
        del arrays[name]
    figure = pictures.examples(arrays, CLASSES, EXITS)
    for i in range(4):
        picture, *inputs = row(figure, i)
        assert len(picture.images) == 1 and not picture.patches and not picture.texts
        for axes in inputs:
            shown = axes.images[0].get_array()
            np.testing.assert_array_equal(shown, arrays["image"][i])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["right", "wrong"]
    del arrays["label"]
    figure = pictures.examples(arrays, CLASSES, EXITS, ["a", "b", "c", "d"])
    assert not figure.legends  # nothing needs one


def test_long_names_are_cut():
    classes = ["a name that goes on and on"] * 3
    figure = pictures.examples(fake_results.arrays(), classes, EXITS)
    assert row(figure, 0)[1].get_xlabel() == "✓ a name that g…\n50%"


def test_without_labels():
    """One's own images: nobody knows what is right."""
    arrays = fake_results.arrays()
    del arrays["label"]
    figure = pictures.examples(arrays, CLASSES, EXITS, ["a.jpg", "b", "c", "d" * 99])
    assert [row(figure, i)[0].get_ylabel() for i in range(3)] == ["a.jpg", "b", "c"]
    assert row(figure, 3)[0].get_ylabel() == "d" * 25 + "…"
    labels = [axes.get_xlabel() for axes in row(figure, 1)[1:]]
    assert labels == ["<b>owl & co\n62%", "$dog_1$\n66%", "$dog_1$\n70%"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "right" not in legend and "wrong" not in legend


def test_locations():
    field = ReceptiveField(fake_results.PATCH, fake_results.STRIDE)
    image = fake_results.arrays()["image"][0]
    figure = pictures.locations(image, field, [(0, 0), (7, 3)])
    (axes,) = figure.axes
    p = fake_results.PATCH
    assert set(rectangles(axes)) == {(0, 0, p, p), (28, 12, p, p)}  # 7 * 4, 3 * 4
    dots = np.column_stack(axes.lines[0].get_data())  # centres, (x, y)
    assert len(dots) == fake_results.GRID**2
    assert dots[0].tolist() == [10, 10] and dots[-1].tolist() == [38, 38]
    assert {text.get_text() for text in axes.texts} == {"0, 0", "7, 3"}


@pytest.mark.parametrize("top", [None, 3.0])
def test_panels(top):
    arrays = fake_results.arrays()
    corners, valid = arrays["boxes"][3, 1:, :2], np.array([True, False])
    maps = {
        "none": (arrays["heatmap"][0], np.zeros((0, 2), int), np.zeros(0, bool)),
        "one": (arrays["heatmap"][3], corners, valid),
    }
    field = ReceptiveField(fake_results.PATCH, fake_results.STRIDE)
    figure = pictures.panels(arrays["image"][0], field, maps, top)
    assert [axes.get_title() for axes in figure.axes] == ["none", "one"]
    p = fake_results.PATCH
    assert [rectangles(axes) for axes in figure.axes] == [{}, {(12, 4, p, p): "-"}]
    assert {text.get_text() for text in figure.axes[1].texts} == {"1"}
    for axes, (heatmap, *_) in zip(figure.axes, maps.values()):
        assert list(axes.images[1].get_extent()) == [8, 40, 40, 8]
        found = axes.images[1].get_clim()
        assert found == ((heatmap.min(), heatmap.max()) if top is None else (0, top))
