"""Results that others published, to be drawn beside one's own.

On ImageNet costs are multiply-adds per image, accuracies are top-1 on the validation
images. Every curve names where its numbers stand; those read off a figure ("digitised")
are good to about 0.02 G and 0.1 points. On other data sets there are single results, with
whatever was published of their cost, by the name of the data set.

    plots.accuracy_cost(summary, published=published.BUDGETED + published.STATIC)
    comparison.draw(found, "time_ms")  # finds those `on` the data by itself
"""

from typing import NamedTuple


class Curve(NamedTuple):
    """What one system reaches, cheapest point first."""

    method: str
    network: str  # empty where the system is one of its own
    source: str
    points: tuple[tuple[float, float], ...]  # (multiply-adds in G, top-1 in %)
    names: tuple[str, ...] = ()  # of the points, where each is another network


class Result(NamedTuple):
    """What one system reaches, by one setting.

    Attributes:
      method: its name.
      setting: what else matters to the number.
      source: where it stands.
      accuracy: top-1 in %.
      cost: multiply-adds per image, as of `results.Point`; None where not published.
      time_ms: milliseconds per image, on the device that `setting` names, likewise.
      peak_bytes: memory of the device, likewise.
    """

    method: str
    setting: str
    source: str
    accuracy: float
    cost: float | None = None
    time_ms: float | None = None
    peak_bytes: float | None = None


_ANCHORNET = "Localizing Semantic Patches, 2022"
_GFNET = "GFNet, NeurIPS 2020, Fig. 4, digitised"
_RIVALS = "figures of GFNet and RANet, 2020, digitised"
_TIMM = "timm, results-imagenet.csv"

# fmt: off
# Thresholds hold the mean cost over all images to a budget.
BUDGETED = (
    Curve("AnchorNet", "ResNet-50", f"{_ANCHORNET}, Sec. 4.2", (
        (0.75, 71.6), (1.7, 75.9))),
    Curve("GFNet", "ResNet-50", _GFNET, (
        (0.8, 69.7), (0.9, 71.3), (1.0, 72.5), (1.1, 73.4), (1.2, 73.9), (1.3, 74.5),
        (1.4, 74.8), (1.5, 75.1), (1.7, 75.3), (1.8, 75.4), (2.0, 75.9), (2.25, 76.3),
        (2.5, 76.5), (3.0, 76.7))),
    Curve("GFNet", "DenseNet-121/169/201", _GFNET, (
        (0.55, 69.0), (0.6, 70.0), (0.7, 71.8), (0.8, 73.0), (0.9, 73.8), (1.0, 74.1),
        (1.1, 74.6), (1.2, 74.9), (1.3, 75.2), (1.5, 75.5), (1.7, 75.8), (1.9, 76.1),
        (2.0, 76.2), (2.39, 76.45))),
    Curve("MSDNet", "", _RIVALS, (
        (0.65, 68.4), (0.7, 69.2), (0.8, 70.2), (0.9, 70.8), (1.0, 71.2), (1.1, 72.0),
        (1.2, 72.5), (1.3, 72.9), (1.4, 73.3), (1.5, 73.7), (1.6, 73.9), (1.75, 74.0),
        (2.3, 74.3))),
    Curve("RANet", "", _RIVALS, (
        (0.55, 68.1), (0.6, 68.7), (0.7, 69.9), (0.8, 70.9), (0.9, 71.7), (1.0, 72.4),
        (1.1, 72.9), (1.2, 73.3), (1.3, 73.8), (1.4, 74.3), (1.5, 74.6), (1.6, 74.8),
        (1.75, 75.0), (2.4, 75.1))),
)
# Every image leaves at the same exit. Table 3 of the paper counts inputs; t of them
# cost t times 0.753 G (ResNet-50 at 95 px), and AnchorNet's 0.061 G from the second on.
ANYTIME = (
    Curve("AnchorNet", "ResNet-50", f"{_ANCHORNET}, Table 3", (
        (0.753, 71.59), (1.567, 74.42), (2.32, 75.27), (3.073, 75.48),
        (3.826, 75.65))),
    Curve("AnchorNet", "DenseNet-201", f"{_ANCHORNET}, Table 2", (
        (0.8, 70.38), (1.6, 73.65), (2.4, 74.53))),
    Curve("GFNet", "DenseNet-121", _GFNET, (
        (0.53, 68.94), (1.09, 72.74), (1.64, 73.93), (2.2, 74.31), (2.75, 74.5))),
    Curve("MSDNet", "", _RIVALS, (
        (0.5, 62.4), (1.35, 69.98), (2.23, 73.03), (2.97, 74.1), (3.25, 74.73))),
    Curve("RANet", "", _RIVALS, (
        (0.43, 63.1), (0.89, 67.4), (1.15, 69.5), (1.35, 70.4), (2.28, 74.1),
        (2.59, 74.6), (3.23, 74.6), (3.33, 74.8))),
)
# One network for all images, at 224 px. The newer recipes train the network that has
# the same cost longer and with more augmentation.
STATIC = (
    Curve("static networks", "early recipes", _TIMM, (
        (0.23, 75.78), (0.4, 77.7), (0.61, 75.27), (0.81, 76.33), (1.63, 77.88),
        (1.8, 69.75), (2.87, 74.75), (3.4, 75.92), (4.1, 76.16), (4.26, 77.63),
        (4.34, 77.28)), (
        "MobileNetV3-L", "EfficientNet-B0", "RegNetY-600M", "RegNetY-800M",
        "RegNetY-1.6G", "ResNet-18", "DenseNet-121", "DenseNet-169", "ResNet-50",
        "ResNeXt-50", "DenseNet-201")),
    Curve("static networks", "newer recipes", _TIMM, (
        (0.4, 78.57), (0.81, 78.67), (1.63, 80.67), (4.1, 80.85), (4.26, 81.19))),
)
# Megapixel MNIST, majority of five digits, 1500 x 1500 px, 5,000 training images.
RESULTS = {
    "megapixel_mnist": (
        Result("attention sampling", "10 patches of 50 px, noise of straight lines",
            "Katharopoulos and Fleuret, 2019, figure of the test error, digitised",
            80.0),
        Result("iterative patch selection",
            "100 of 900 patches of 50 px, curved noise; batch of 16, GPU not named",
            "Bergner et al., 2023, on the variant of arXiv 2412.11237, digits of 28 px",
            # 371 to 380 ms and 1,880 MiB for a batch of 16
            99.1, time_ms=375.5 / 16, peak_bytes=1880 * 2**20),
    ),
}
# fmt: on
# What the figures of a paper show: {figure: (title, curves)}, for each data set.
FIGURES = {
    "imagenet2012": {
        "published_budgeted": (
            "Published on ImageNet: each image stops when the method is sure (2022, Fig. 5)",
            BUDGETED + STATIC,
        ),
        "published_anytime": (
            "Published on ImageNet: all images leave at the same exit (2022, Fig. 6)",
            ANYTIME + STATIC,
        ),
    },
}


def on(data: str) -> tuple[Result, ...]:
    """Return the results on a data set, which a TFDS name such as `a/config` names."""
    return RESULTS.get(data.partition("/")[0], ())
