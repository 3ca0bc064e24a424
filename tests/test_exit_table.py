"""Exit tables: what they accept, and what leaving by thresholds comes to."""

import pathlib

import numpy as np
import pytest

from anchornet_jax.inference import exit_table
from anchornet_jax.inference.exit_table import NEVER
from anchornet_jax.inference.stopping import ALWAYS

PUBLISHED = (
    pathlib.Path(__file__).parent.parent.parent
    / "shared/data/densenet201_imagenet_exits.npz"
)
CSV = """\
confidence_1, confidence_2, predicted_1, predicted_2, label, cost_1, cost_2, note
0.5, 0.75, 3, 4, 4, 1, 2.5, blurred
0.25, 1, 2, 2, 2, 1, 2.5, 
"""


def table(n=400, e=4, seed=0, digits=2):
    """Return a table, with ties where digits are few; the sure are more often right."""
    rng = np.random.default_rng(seed)
    confidence = np.round(np.sort(rng.random((n, e)), axis=1), digits)
    correct = rng.random((n, e)) < confidence
    return exit_table.ExitTable(confidence, np.arange(1.0, e + 1), correct=correct)


def algorithm_1(confidence, thresholds):
    """2022, Algorithm 1: the 0-based step after which the loop returns."""
    for step, threshold in enumerate(thresholds):
        if confidence[step] > threshold:
            return step
    return len(thresholds)


@pytest.mark.parametrize("seed", range(5))
def test_apply_equals_algorithm_1(seed):
    data = table(seed=seed)
    thresholds = np.round(np.random.default_rng(seed).random(3), 2)
    outcome = exit_table.apply(data, thresholds)
    wanted = [algorithm_1(row, thresholds) for row in data.confidence]
    np.testing.assert_array_equal(outcome.exit, wanted)
    rows = np.arange(400)
    assert outcome.accuracy == data.correct[rows, wanted].mean()
    assert outcome.mean_cost == pytest.approx(data.cost[wanted].mean())
    assert outcome.expected_inputs == pytest.approx(1 + np.mean(wanted))
    np.testing.assert_allclose(outcome.shares, np.bincount(wanted, minlength=4) / 400)


def test_a_confidence_at_its_threshold_stays():
    data = exit_table.ExitTable([[0.5, 0.5, 0.5]], [1, 2, 3], correct=[[1, 1, 1]])
    assert exit_table.apply(data, [0.5, np.nextafter(0.5, 0)]).exit.tolist() == [1]


def test_thresholds_that_all_or_none_exceed_are_anytime():
    data = table()
    for t, row in enumerate(zip(data.correct.mean(0), data.cost)):
        outcome = exit_table.apply(data, [NEVER] * t + [ALWAYS] * (3 - t))
        assert row == (outcome.accuracy, outcome.mean_cost)


@pytest.mark.parametrize(
    "thresholds", [[0.5], [0.5] * 4, [0.5, np.nan, 0.5], 0.5, [[0.5] * 3]]
)
def test_wrong_thresholds(thresholds):
    with pytest.raises(ValueError, match="`thresholds` is .*; give 3 numbers"):
        exit_table.apply(table(), thresholds)


def test_select_keeps_all_columns():
    data = exit_table.ExitTable(
        [[0.1, 0.2], [0.3, 0.4]], [1, 2], predicted=[[5, 6], [7, 8]], label=[6, 7]
    )
    part = data.with_cost([3, 9], "ms").select([1], exits=1)
    assert part.confidence.tolist() == [[0.3]]
    assert (part.cost.tolist(), part.unit) == ([3], "ms")
    assert part.predicted.tolist() == [[7]] and part.label.tolist() == [7]
    assert part.correct.tolist() == [[True]]


def test_other_costs_change_nothing_else():
    data = table()
    timed = data.with_cost([0.4, 1.1, 1.5, 1.9], "ms")
    one, other = (exit_table.apply(d, [0.3, 0.5, 0.7]) for d in (data, timed))
    np.testing.assert_array_equal(one.exit, other.exit)
    assert other.accuracy == one.accuracy
    assert other.mean_cost == pytest.approx(one.shares @ [0.4, 1.1, 1.5, 1.9])


def test_npz_round_trip(tmp_path):
    path = tmp_path / "table.npz"
    data = exit_table.ExitTable(
        [[0.1, 0.2]], [1, 2], predicted=[[5, 6]], label=[6], unit="ms"
    )
    data.save(path)
    loaded = exit_table.ExitTable.load(path)
    for name, value in vars(data).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    other = exit_table.ExitTable.load(path, cost=[3, 4], unit="G")
    assert (other.cost.tolist(), other.unit) == ([3, 4], "G")
    assert [p.name for p in tmp_path.iterdir()] == ["table.npz"]
    with pytest.raises(ValueError, match="`path` is .*table.csv'; a table is saved as"):
        data.save(tmp_path / "table.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # a spreadsheet's is -sig
def test_csv(tmp_path, encoding):
    path = tmp_path / "table.csv"
    path.write_text(CSV, encoding=encoding)
    data = exit_table.ExitTable.load(path, unit="ms")
    assert data.confidence.tolist() == [[0.5, 0.75], [0.25, 1]]
    assert data.correct.tolist() == [[False, True], [True, True]]
    assert (data.cost.tolist(), data.unit) == ([1, 2.5], "ms")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.75", "", "column `confidence_2`: could not convert string to float: ''"),
        ("0.75", "high", "column `confidence_2`: could not convert .*: 'high'"),
        ("0.75", "nan", "`confidence` is nan for image 0 at exit 2"),
        ("0.75", "75", "`confidence` is 75.0 for image 0 at exit 2"),
        ("confidence_2", "confidence_3", "they must be numbered 1, 2, …"),
        ("cost_2", "expenses", r"`cost` has shape \(1,\); `confidence` has 2 exits"),
        ("1, 2.5, \n", "1, 2.5, 8, 9\n", "image 1 has 9 columns, the header 8"),
        ("1, 2.5, \n", "1, 3, \n", "`cost` differs between lines"),
        ("1, 2.5", "2.5, 1", "`cost` is .*; it must be positive, finite and increas"),
        ("predicted_2", "guess_2", r"`predicted` has shape \(2, 1\); it must be \(2"),
        ("label", "truth", "`predicted` and `label` must be given together"),
        ("2, 2, 2, 1", "2, 2, -1, 1", "`label` holds -1.0; a class is an integer"),
        ("2, 2, 2, 1", "2, 1.5, 2, 1", "`predicted` holds 1.5"),
        ("confidence", "sureness", "no confidence in it"),
        (CSV, "", "no header and lines of numbers in it"),
        (CSV[CSV.index("\n") :], "\n", "no header and lines"),
    ],
)
def test_wrong_csv(tmp_path, old, new, message):
    path = tmp_path / "table.csv"
    path.write_text(CSV.replace(old, new))
    with pytest.raises(ValueError, match=f"table.csv: .*{message}"):
        exit_table.ExitTable.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": np.ones((3, 2))}, "`correct` has shape"),
        ({"confidence": np.ones(2)}, r"`confidence` has shape \(2,\); give \[n, E\]"),
        ({"confidence": np.ones((0, 2))}, "`confidence` has shape"),
        ({"correct": [[0, 2], [1, 1]]}, "`correct` must hold booleans, or 0 and 1"),
        ({"correct": [[0, np.nan], [1, 1]]}, "`correct` must hold booleans"),
        ({"correct": None}, "give `correct`, or `predicted` and `label`"),
        ({"predicted": [[0, 1], [1, 1]]}, "must be given together"),
        ({"predicted": [[0, 1]] * 2, "label": [1]}, "`label` has shape"),
        ({"predicted": [[0, 1]] * 2, "label": [0, 1]}, "`correct` disagrees with"),
        ({"cost": [1, 2, 3]}, "`cost` has shape"),
        ({"cost": [0, 2]}, "`cost` is .*; it must be positive"),
        ({"cost": [1, np.nan]}, "`cost` is .*; it must be positive, finite"),
        ({"cost": [1, 1]}, "`cost` is .* and increasing"),
    ],
)
def test_wrong_columns(tmp_path, changes, message):
    fields = {
        "confidence": [[0.1, 0.2], [0.3, 0.4]],
        "cost": [1, 2],
        "correct": [[0, 1], [1, 1]],
    }
    exit_table.ExitTable(**fields)
    fields |= changes
    with pytest.raises(ValueError, match=message):
        exit_table.ExitTable(**fields)
    path = tmp_path / "table.npz"
    np.savez(path, **{k: v for k, v in fields.items() if v is not None})
    with pytest.raises(ValueError, match=f"table.npz: .*{message}"):
        exit_table.ExitTable.load(path)


def test_files_that_are_no_tables(tmp_path):
    for name, content in {"text.npz": b"no archive", "empty.npz": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            exit_table.ExitTable.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"`path` is .*table.txt'; choose one of"):
        exit_table.ExitTable.load(tmp_path / "table.txt")
    np.savez(tmp_path / "costless.npz", confidence=[[0.5]], correct=[[1]])
    with pytest.raises(ValueError, match="costless.npz: no cost in it"):
        exit_table.ExitTable.load(tmp_path / "costless.npz")
    assert exit_table.ExitTable.load(tmp_path / "costless.npz", cost=[1]).cost == [1]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published table is not here")
def test_published_table():
    data = exit_table.ExitTable.load(PUBLISHED, cost=np.arange(1.0, 7))
    # Half of the 50,000 rows; all give 70.378, 73.648, 74.530, 74.712, 74.866, 74.792 %
    # after 1 to 6 inputs (2022, Table 2 rounds the first three), of which half may be
    # off by three standard errors of the difference between the halves, 0.6 points.
    published = [0.70378, 0.73648, 0.74530, 0.74712, 0.74866, 0.74792]
    right = [17631, 18451, 18663, 18684, 18732, 18713]
    found = data.correct.mean(0).tolist()
    np.testing.assert_allclose(found, published, atol=0.006)
    assert found == [count / 25_000 for count in right]
