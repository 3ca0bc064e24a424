"""Reading results back: everything that is missing or foreign is named."""

import numpy as np
import pytest

from anchornet_jax.figures import results
from tests import fake_results


def change(tree, path, value):
    """Set, or with `None` for a value delete, what `path` leads to."""
    for key in path[:-1]:
        tree = tree[key]
    if value is None:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


def test_read(tmp_path):
    fake_results.write(tmp_path, fake_results.summary(), fake_results.arrays())
    summary, arrays = results.read(tmp_path)
    assert summary == fake_results.summary()
    for name, expected in fake_results.arrays().items():
        np.testing.assert_array_equal(arrays[name], expected)


@pytest.mark.parametrize(
    "path",
    [
        ("full_image",),
        ("seconds",),
        ("anchornet", "box_coverage"),
        ("budgeted", 0, "thresholds"),
    ],
)
def test_optional_parts_are_none(tmp_path, path):
    summary = fake_results.summary()
    change(summary, path, None)
    arrays = fake_results.arrays() | {"unknown": np.zeros(7)}
    del arrays["box"]
    fake_results.write(tmp_path, summary, arrays)
    found, arrays = results.read(tmp_path)
    for key in path:
        found = found[key]
    assert found is None
    assert "box" not in arrays and "unknown" not in arrays


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("budgeted",), None, "`summary.budgeted` is missing"),
        (("budgeted",), [], "`summary.budgeted` is .*a list that is not empty"),
        (("anytime", 1, "macs"), None, r"`summary.anytime\[1\].macs` is missing"),
        (
            ("anytime", 1, "macs"),
            "many",
            r"macs` is 'many'; allowed is a finite number",
        ),
        (("anytime", 0, "macs"), float("nan"), "macs` is nan; allowed is a finite"),
        (("full_image", "accuracy"), 90, "is 90; allowed is a number from 0 to 1"),
        (("classes",), 10, "`summary.classes` is 10; allowed is a list"),
        (("classes", 1), 7, r"`summary.classes\[1\]` is 7; allowed is text"),
        (("anchornet",), 0.8, "`summary.anchornet` is 0.8; allowed is an object"),
        (("seconds", "data"), "long", "`summary.seconds.data` is 'long'"),
        (("budgeted", 1, "exits"), [1.0], r"`budgeted\[1\].exits` has 1 shares"),
    ],
)
def test_summary_errors_name_file_and_key(tmp_path, path, value, message):
    summary = fake_results.summary()
    change(summary, path, value)
    fake_results.write(tmp_path, summary, fake_results.arrays())
    with pytest.raises(ValueError, match=f"summary.json.*{message}"):
        results.read(tmp_path)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("heatmap", None, "`heatmap` is missing"),
        ("heatmap", np.zeros((4, 8)), r"`heatmap` has shape \[4, 8\]"),
        (
            "valid",
            np.ones((4, 3), bool),
            r"`valid` has shape \[4, 3\]; allowed is \[4, 2",
        ),
        ("image", np.zeros((4, 48, 48, 1)), r"`image` .* allowed is \[4, 48, 48, 3\]"),
        ("exit", np.array([0, 1, 2, 3]), "`exit` has values outside 0 to 2"),
        ("label", np.array([0, 1, 2, 3]), "`label` has values outside 0 to 2"),
        ("box", np.zeros((4, 2)), r"`box` has shape \[4, 2\]"),
    ],
)
def test_example_errors_name_file_and_key(tmp_path, name, value, message):
    arrays = fake_results.arrays()
    change(arrays, (name,), value)
    fake_results.write(tmp_path, fake_results.summary(), arrays)
    with pytest.raises(ValueError, match=f"examples.npz.*{message}"):
        results.read(tmp_path)


def test_more_exits_than_inputs(tmp_path):
    arrays = fake_results.arrays()
    arrays["corners"], arrays["valid"] = (
        arrays["corners"][:, :1],
        arrays["valid"][:, :1],
    )
    fake_results.write(tmp_path, fake_results.summary(), arrays)
    with pytest.raises(ValueError, match="`predicted` has 3 exits"):
        results.read(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "examples.npz"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"PK\x03\x04 half a zip"])
def test_missing_and_foreign_files(tmp_path, name, content):
    fake_results.write(tmp_path, fake_results.summary(), fake_results.arrays())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} holds no"):
        results.read(tmp_path)


def test_other_numpy_files(tmp_path):
    fake_results.write(tmp_path, fake_results.summary(), fake_results.arrays())
    with open(tmp_path / "examples.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="examples.npz holds no examples"):
        results.read(tmp_path)
    objects = {"image": np.array([{}], object)}  # would be unpickled: never
    fake_results.write(tmp_path, fake_results.summary(), objects)
    with pytest.raises(ValueError, match="examples.npz holds no examples"):
        results.read(tmp_path)
