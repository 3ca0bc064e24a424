"""The published numbers: in order, within reason, and with their source."""

import pytest

from anchornet_jax.figures import plots, published

CURVES = published.BUDGETED + published.ANYTIME + published.STATIC


@pytest.mark.parametrize("curve", CURVES, ids=lambda c: f"{c.method} {c.network}")
def test_points_are_sane(curve):
    costs, accuracies = zip(*curve.points)
    assert list(costs) == sorted(set(costs))
    assert 0.1 < costs[0] and costs[-1] < 5  # G; DenseNet-201 at 224 px is the dearest
    assert all(55 < accuracy < 85 for accuracy in accuracies)  # %
    assert curve.source and curve.method in plots.STYLES
    assert len(curve.names) in (0, len(curve.points))


@pytest.mark.parametrize("curve", published.BUDGETED + published.ANYTIME)
def test_more_cost_is_no_less_accuracy(curve):
    accuracies = [accuracy for _, accuracy in curve.points]
    assert accuracies == sorted(accuracies)


@pytest.mark.parametrize("data", published.RESULTS)
def test_results_are_sane(data):
    for one in published.on(f"{data}/some_config"):
        assert 0 < one.accuracy <= 100 and one.method and one.setting and one.source
    assert published.on("plates") == ()


def test_megapixel_digits_as_published():
    """Error of .20; 371 to 380 ms and 1,880 MiB for 16 images."""
    sampling, selection = published.on("megapixel_mnist/ats")
    assert (sampling.accuracy, sampling.time_ms, sampling.cost) == (80, None, None)
    assert 371 / 16 < selection.time_ms < 380 / 16
    assert (selection.accuracy, selection.peak_bytes) == (99.1, 1880 * 2**20)


def find(curves, method, network):
    (curve,) = [c for c in curves if (c.method, c.network) == (method, network)]
    return curve.points


def test_anchornet_is_as_printed():
    by_inputs = find(published.ANYTIME, "AnchorNet", "ResNet-50")
    # 2022, Table 3
    assert [a for _, a in by_inputs] == [71.59, 74.42, 75.27, 75.48, 75.65]
    # ResNet-50 at 95 px: 752.75 M multiply-adds; AnchorNet: 60.54 M
    expected = [0.75275 * t + 0.06054 * (t > 1) for t in range(1, 6)]
    assert [c for c, _ in by_inputs] == pytest.approx(expected, abs=0.002)
    # 2022, Table 2
    points = find(published.ANYTIME, "AnchorNet", "DenseNet-201")
    assert points == ((0.8, 70.38), (1.6, 73.65), (2.4, 74.53))
    # 2022, Sec. 4.2: "with the range of 0.75 ~ 1.7 GFLOPs", 71.6 % ~ 75.9 %
    points = find(published.BUDGETED, "AnchorNet", "ResNet-50")
    assert points == ((0.75, 71.6), (1.7, 75.9))


def test_gain_over_gfnet_is_what_the_paper_says():
    """0.5 to 2 points over GFNet with ResNet-50 (2022, Sec. 4.2), read at 1.7 G."""
    gfnet = dict(find(published.BUDGETED, "GFNet", "ResNet-50"))
    anchornet = dict(find(published.BUDGETED, "AnchorNet", "ResNet-50"))
    assert 0.5 <= anchornet[1.7] - gfnet[1.7] <= 2


def test_newer_recipes_are_networks_of_the_early_ones():
    early, newer = (dict(curve.points) for curve in published.STATIC)
    assert set(newer) <= set(early)
    assert all(newer[cost] > early[cost] for cost in newer)
