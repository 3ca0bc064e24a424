"""Early exit for real: images leave as soon as they are sure, and batches stay full.

Localizing Semantic Patches (2022), Algorithm 1, as an engine. Images in flight live in
slots on the device. Three programs of one static batch size work on any set of slots:
the glance, AnchorNet, and one patch. Whoever goes on after a step waits in a queue for
the next program; images of different batches, and at different patches, share a launch,
as in continuous batching of language models. AnchorNet runs on no image that leaves at
the glance. The host decides about one launch while the device works on later ones.

    classifier = inference.load("runs/demo/export", budget=80e6, batch_size=64)
    result = classifier.classify(images)             # arrays, in input order
    for result in classifier.stream(iterator): ...   # of any length

One image at a time, for the shortest wait: `batch_size=1, in_flight=1`.
"""

import statistics
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from anchornet_jax.inference import folding, lanes, sources, stopping
from anchornet_jax.inference.lanes import Result
from anchornet_jax.inference.sources import StreamError
from anchornet_jax.methods import anchornet

__all__ = ["Classifier", "Result", "StreamError", "load"]


class Classifier:
    """The sequential classifier with early exit.

    Attributes:
      method: the networks as they were given.
      rule: who leaves when, from `stopping`.
      image_size: side of the square images in pixels.
      batch_size: images of a launch, on each device.
      in_flight: images on each device at most; four batches by default.
      max_wait: launches after which an image goes on in a batch that is not full.
      details: also return corners and logits.
      dtype: type of the computation, `bfloat16` say; None for the networks' own.
      devices: to be used; all local ones by default.
    """

    def __init__(
        self,
        method: anchornet.Sequence,
        rule: stopping.Rule,
        *,
        image_size: int,
        batch_size: int = 64,
        in_flight: int | None = None,
        max_wait: int = 64,
        details: bool = False,
        dtype: str | None = None,
        devices=None,
    ):
        anchornet.check(method)
        anchornet.check_images(method, image_size)
        in_flight = 4 * batch_size if in_flight is None else in_flight
        if batch_size < 1 or in_flight < batch_size:
            raise ValueError(
                f"`batch_size` is {batch_size} and `in_flight` {in_flight}; allowed is "
                "1 or more, and at least a batch in flight"
            )
        if max_wait < 1:
            raise ValueError(f"`max_wait` is {max_wait}; allowed is 1 or more")
        self.image_size, self.batch_size = image_size, batch_size
        self.in_flight, self.max_wait, self.details = in_flight, max_wait, details
        self.method = method
        self.rule = rule
        folded = _fold(method, image_size, dtype)
        self.programs = lanes.programs(folded, details)
        self.devices = list(devices or jax.local_devices())
        self._variables = [jax.device_put(folded.variables(), d) for d in self.devices]

    @property
    def rule(self) -> stopping.Rule:
        """Who leaves when; may be replaced between streams, nothing is recompiled."""
        return self._rule

    @rule.setter
    def rule(self, rule):
        if rule.steps != self.method.inputs - 1:
            raise ValueError(
                f"`rule` decides {rule.steps} times; {self.method.inputs} inputs need "
                f"{self.method.inputs - 1}"
            )
        self._rule = rule

    def classify(self, images) -> Result:
        """Classify uint8 images [B, H, W, 3], of NumPy or on a device.

        Raises:
          ValueError: for images of the wrong size or type.
        """
        source = sources.Array(images, self.image_size)
        columns = lanes.columns(self, source.count)
        for left in self._run(source):
            for column, values in zip(columns, left.result):
                if column is not None:
                    column[left.numbers] = values
        return Result(*columns)

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Result]:
        """Classify a stream of uint8 images [H, W, 3]; results in its order.

        At most `in_flight` images per device are held, and results only as long as an
        earlier image is under way.

        Raises:
          ValueError: for an image of the wrong size or type; it names the item.
          StreamError: if the stream raises; it names the item. Either comes after the
            results of all earlier images.
        """
        source = sources.Stream(images, self.image_size)
        finished, position = {}, 0
        for numbers, columns in self._run(source):
            columns = [[None] * len(numbers) if c is None else c for c in columns]
            for number, *values in zip(numbers.tolist(), *columns):
                finished[number] = _plain(values)
            while position in finished:
                yield finished.pop(position)
                position += 1
        if source.error is not None:
            raise source.error

    def milliseconds(self, repeats: int = 5) -> np.ndarray:
        """Measure what leaving at each exit costs, [T] milliseconds per image.

        Full batches of random pixels on the first device, divided by the devices. In
        place of multiply-adds it makes the cost of an exit table, so that rules can be
        fitted to a budget in time: AnchorNet moves much memory for its multiply-adds.
        """
        lane = lanes.Lane(self, self.devices[0], self._variables[0])
        shape = (self.batch_size, self.image_size, self.image_size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        images = jax.device_put(pixels, self.devices[0])
        first = np.zeros(self.batch_size, np.int32)
        arguments = {"glance": (images,), "localize": (), "patch": (first,)}
        took = {}
        for name, values in arguments.items():
            times = [lane.measure(name, *values) for _ in range(repeats + 1)]
            per_image = self.batch_size * len(self.devices)
            took[name] = 1e3 * statistics.median(times[1:]) / per_image  # 0 compiles
        cost = np.full(self.method.inputs, took["patch"])
        cost[0], cost[1] = took["glance"], took["localize"] + took["patch"]
        return cost.cumsum()

    def _run(self, source) -> Iterator[lanes.Left]:
        """Run a source to its end; yield who left, in the order of leaving."""
        running = [
            lanes.Lane(self, *both) for both in zip(self.devices, self._variables)
        ]
        while source.open or any(lane.busy for lane in running):
            moved = False
            for lane in running:
                if lane.ready:
                    moved = True
                    yield lane.collect()
                else:
                    moved |= lane.advance(source)
            waiting = [lane for lane in running if lane.launches]
            if not moved and waiting:  # nothing to do but wait
                yield waiting[0].collect()


def load(
    directory,
    *,
    budget: float | None = None,
    thresholds: Iterable[float] | None = None,
    inputs: int | None = None,
    **options,
) -> Classifier:
    """Make a classifier from an export, to stop by one of three rules.

    Args:
      directory: written by `export`.
      budget: mean multiply-adds per image, see `export.Export.rule`.
      thresholds: of the confidence, one per exit but the last.
      inputs: every image leaves after so many.
      **options: of `Classifier`.

    Raises:
      ValueError: for a directory that holds no export, not just one rule, or one that
        cannot be.
    """
    from anchornet_jax.inference import export  # Orbax is needed here alone

    given = {"budget": budget, "thresholds": thresholds, "inputs": inputs}
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError(
            f"give one of `budget`, `thresholds` and `inputs`, not {given}"
        )
    found = export.load(directory)
    if thresholds is not None:
        rule = stopping.ThresholdRule(thresholds)
    elif inputs is not None:
        rule = stopping.fixed(inputs, found.method.inputs)
    else:
        _, rule = found.rule(budget)
    return Classifier(found.method, rule, image_size=found.image_size, **options)


def _fold(method, image_size, dtype) -> anchornet.Sequence:
    """Return the method with its networks as inference runs them."""
    sizes = {"anchornet": image_size} | dict.fromkeys(
        ("glance", "patches"), method.patch_size
    )
    return method._replace(
        **{n: folding.fold(getattr(method, n), s, dtype) for n, s in sizes.items()}
    )


def _plain(values) -> Result:
    predicted, confidence, exit, corners, logits = values
    return Result(int(predicted), float(confidence), int(exit), corners, logits)
