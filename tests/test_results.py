"""Reading results back: everything that is missing or foreign is named."""

import json

import numpy as np
import pytest

from anchornet_jax.figures import examples
from anchornet_jax.inference import results
from anchornet_jax.inference.results import Evaluation, Point, Reference
from tests import fake_results

ABSENT = object()


def change(tree, path, value):
    """Set, or delete, what `path` leads to."""
    for key in path[:-1]:
        tree = tree[key]
    if value is ABSENT:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


def plain():
    return json.loads(json.dumps(fake_results.summary().to_json()))


@pytest.mark.parametrize("made", [fake_results.summary(), fake_results.single()])
def test_read(tmp_path, made):
    """What was written comes back as it was, types and all."""
    fake_results.write(tmp_path, made, fake_results.arrays())
    assert results.read(tmp_path) == made
    assert Evaluation.from_json(json.loads(json.dumps(made.to_json()))) == made
    arrays = examples.read(tmp_path, 3, 3)
    for name, expected in fake_results.arrays().items():
        np.testing.assert_array_equal(arrays[name], expected)


def test_point():
    point = Point(0.5, 2e6, [0.25, 0.75], rule={"rule": "thresholds"})
    assert point.steps == 1.75  # 2022, E(t): 0.25 + 2 * 0.75
    assert point.to_json() == {
        "accuracy": 0.5,
        "cost": 2e6,
        "exits": [0.25, 0.75],
        "unit": "multiply-adds",
        "rule": {"rule": "thresholds"},
    }
    assert Point.from_json(point.to_json()) == point


def test_reference_is_the_most_accurate_with_one_exit():
    made = fake_results.summary()
    name, point = made.reference()
    assert (name, point.accuracy) == ("full image", 0.9)
    worse = Reference(["whole image"], fake_results.anytime((0.5, 1e6, None)))
    made.references["small"] = worse
    assert made.reference()[0] == "full image"
    assert fake_results.single().reference() is None


@pytest.mark.parametrize(
    "path",
    [
        ("references",),
        ("seconds",),
        ("box_coverage",),
        ("exit_time_ms",),
        ("device",),
        ("budgeted", 0, "rule"),
        ("anytime", 0, "time_ms"),
    ],
)
def test_optional_parts(tmp_path, path):
    summary = plain() | {"of another program": 1}
    change(summary, path, ABSENT)
    arrays = fake_results.arrays() | {"unknown": np.zeros(7)}
    for name in ("box", "heatmap", "extent", "boxes"):
        del arrays[name]
    fake_results.write(tmp_path, summary, arrays)
    found = results.read(tmp_path)
    for key in path:
        found = found[key] if isinstance(found, list) else getattr(found, key)
    assert not found
    assert set(examples.read(tmp_path, 3, 3)) == set(arrays) - {"unknown"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("budgeted",), ABSENT, "`summary.budgeted` is missing"),
        (("budgeted",), 3, "`summary.budgeted` is 3; allowed is a list"),
        (("anytime",), [], "`summary.anytime` is .*a list that is not empty"),
        (("anytime", 1, "cost"), ABSENT, r"`summary.anytime\[1\].cost` is missing"),
        (("anytime", 1, "cost"), "many", "cost` is 'many'; allowed is a finite number"),
        (("anytime", 0, "cost"), float("nan"), "cost` is nan; allowed is a finite"),
        (
            ("references", "full image", "anytime", 0, "accuracy"),
            90,
            r"full image.anytime\[0\].accuracy` is 90; allowed is a number from 0 to 1",
        ),
        (("references", "full image"), 1, "full image` is 1; allowed is an object"),
        (("classes",), 10, "`summary.classes` is 10; allowed is a list"),
        (("classes", 1), 7, r"`summary.classes\[1\]` is 7; allowed is text"),
        (("method", "name"), ABSENT, "`summary.method.name` is missing"),
        (("seconds", "data"), "long", "`summary.seconds.data` is 'long'"),
        (("budgeted", 0, "binding"), "yes", "binding` is 'yes'; allowed is true or"),
        (("budgeted", 1, "exits"), [1.0], r"budgeted\[1\].exits` has 1 shares"),
    ],
)
def test_summary_errors_name_file_and_key(tmp_path, path, value, message):
    summary = plain()
    change(summary, path, value)
    fake_results.write(tmp_path, summary, fake_results.arrays())
    with pytest.raises(ValueError, match=f"summary.json.*{message}"):
        results.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("predicted", ABSENT, "`predicted` is missing"),
        ("heatmap", np.zeros((4, 8)), r"`heatmap` has shape \[4, 8\]"),
        ("boxes", np.ones((4, 2, 4)), r"`boxes` .* allowed is \[4, 3, 4\]"),
        ("image", np.zeros((4, 48, 48, 1)), r"`image` .* allowed is \[4, 48, 48, 3\]"),
        ("exit", np.array([0, 1, 2, 3]), "`exit` has values outside 0 to 2"),
        ("label", np.array([0, 1, 2, 3]), "`label` has values outside 0 to 2"),
        ("box", np.zeros((4, 2)), r"`box` has shape \[4, 2\]"),
        ("extent", np.zeros((3, 4)), r"`extent` has shape \[3, 4\]"),
        ("extent", ABSENT, "`heatmap` and `extent` must be there together"),
        ("heatmap", ABSENT, "`heatmap` and `extent` must be there together"),
        ("predicted", np.full((4, 3), -1), "`predicted` has values outside 0 to 2"),
    ],
)
def test_example_errors_name_file_and_key(tmp_path, name, value, message):
    arrays = fake_results.arrays()
    change(arrays, (name,), value)
    fake_results.write(tmp_path, fake_results.summary(), arrays)
    with pytest.raises(ValueError, match=f"examples.npz.*{message}"):
        examples.read(tmp_path, 3, 3)


def test_other_number_of_exits(tmp_path):
    fake_results.write(tmp_path, fake_results.summary(), fake_results.arrays())
    with pytest.raises(ValueError, match=r"`predicted` .* allowed is \[4, 2\]"):
        examples.read(tmp_path, 3, 2)


@pytest.mark.parametrize("name", ["summary.json", "examples.npz"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"PK\x03\x04 half a zip"])
def test_missing_and_foreign_files(tmp_path, name, content):
    fake_results.write(tmp_path, fake_results.summary(), fake_results.arrays())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} (cannot be read|holds no arrays)"):
        if name == "summary.json":
            results.read(tmp_path)
        else:
            examples.read(tmp_path, 3, 3)


def test_other_numpy_files(tmp_path):
    fake_results.write(tmp_path, fake_results.summary(), fake_results.arrays())
    with open(tmp_path / "examples.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="examples.npz holds no arrays"):
        examples.read(tmp_path, 3, 3)
    objects = {"image": np.array([{}], object)}  # would be unpickled: never
    fake_results.write(tmp_path, fake_results.summary(), objects)
    with pytest.raises(ValueError, match="examples.npz holds no arrays"):
        examples.read(tmp_path, 3, 3)
