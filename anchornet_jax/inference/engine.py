"""Early exit for real: images leave as soon as they are sure, and batches stay full.

Any method of `methods` runs here. Images in flight live in slots on the device; each
distinct step of the method is one program of one static batch size, which works on any
set of slots. An image that goes on after a step waits for the next program (`scheduler`);
images of different batches, and at different places, share a launch (`runner`), as in
continuous batching of language models. No later step runs on an image that has left.
The host decides about one launch while the device works on later ones.

    classifier = engine.load("runs/demo/export", budget=80e6, batch_size=64)
    result = classifier.classify(images)             # arrays, in input order
    for result in classifier.stream(iterator): ...   # of any length

One image at a time, for the shortest wait: `batch_size=1, in_flight=1`.
"""

import collections
import statistics
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from anchornet_jax.inference import control, folding, runner, sources, stopping
from anchornet_jax.inference.runner import Result
from anchornet_jax.inference.sources import StreamError
from anchornet_jax.methods import method as protocol

__all__ = ["Classifier", "Result", "StreamError", "load"]


class Classifier:
    """A method with early exit.

    Attributes:
      method: the method as it was given.
      rule: when to stop, from `stopping`, or a `control.Control`, which moves its rule so
        that the mean cost of each stream, or array, comes out at its budget.
      image_size: side of the square images in pixels. A method on the host
        (`method.on_host`) takes images of any sizes, also mixed: it does not matter then.
      batch_size: images of a launch, on each device.
      in_flight: images on each device at most; four batches by default. So many large
        images, and a third more for their halved copies, are held in host memory.
      max_wait: launches after which an image goes on in a batch that is not full.
      details: also return boxes and logits.
      features: what rules may see beside the confidence, names of
        `methods.method.features`; those of the first rule by default.
      dtype: type of the computation, `bfloat16` say; None for the networks' own.
      devices: to be used; all local ones by default.
    """

    def __init__(
        self,
        method: protocol.Method,
        rule: stopping.Rule | control.Control,
        *,
        image_size: int,
        batch_size: int = 64,
        in_flight: int | None = None,
        max_wait: int = 64,
        details: bool = False,
        features: Sequence[str] | None = None,
        dtype: str | None = None,
        devices=None,
    ):
        protocol.check(method)
        protocol.check_images(method, image_size)
        counts = {
            "batch_size": (batch_size, 1),
            "in_flight": (
                4 * batch_size if in_flight is None else in_flight,
                batch_size,
            ),
            "max_wait": (max_wait, 1),
        }
        for name, (count, least) in counts.items():
            if not isinstance(count, (int, np.integer)) or count < least:
                raise ValueError(
                    f"`{name}` is {count!r}; allowed are whole numbers from {least}"
                    + (", the batch size" if name == "in_flight" else "")
                )
        in_flight = counts["in_flight"][0]
        self.image_size, self.batch_size = image_size, batch_size
        self.in_flight, self.max_wait, self.details = in_flight, max_wait, details
        self.method = method
        self.features = tuple(rule.features if features is None else features)
        protocol.check_features(method, self.features)
        self.rule = rule
        folded = folding.fold_method(method, image_size, dtype)
        self._programs = runner.Programs(
            folded, image_size, details=details, features=self.features
        )
        self.devices = list(devices or jax.local_devices())
        variables = protocol.variables(folded)
        self._variables = [jax.device_put(variables, d) for d in self.devices]

    @property
    def rule(self) -> stopping.Rule | control.Control:
        """When to stop; may be replaced between streams, nothing is recompiled."""
        return self._rule

    @rule.setter
    def rule(self, rule):
        exits = len(self.method.steps)
        if rule.steps != exits - 1:
            raise ValueError(
                f"`rule` decides {rule.steps} times; {exits} exits need {exits - 1}"
            )
        if missing := set(rule.features) - set(self.features):
            raise ValueError(
                f"`rule` sees {', '.join(sorted(missing))}; the classifier was made with "
                f"`features` {self.features}"
            )
        self._rule = rule

    @property
    def traced(self) -> collections.Counter:
        """How often each step was traced, by name: once, and once more per device."""
        return self._programs.traced

    @property
    def launched(self) -> collections.Counter:
        """How often each step was launched so far, by name."""
        return self._programs.launched

    def classify(self, images) -> Result:
        """Classify uint8 images [B, H, W, 3], of NumPy or on a device.

        A method on the host also takes a list of images [H, W, 3] of any sizes.

        Raises:
          ValueError: for images of the wrong size or type.
        """
        if self._programs.on_host:
            source = sources.Listed(images)
        else:
            source = sources.Array(images, self.image_size)
        columns = runner.empty(self, source.count)
        for left in self._run(source):
            for column, values in zip(columns, left.result):
                if column is not None:
                    column[left.numbers] = values
        return Result(*columns)

    def stream(
        self, images: Iterable[np.ndarray], known: Sequence[int] = ()
    ) -> Iterator[Result]:
        """Classify a stream of uint8 images [H, W, 3]; results in its order.

        At most `in_flight` images per device are held, and results only as long as an
        earlier image is under way.

        Args:
          images: of any number.
          known: exits of images that came before, where a stream under control goes on.

        Raises:
          ValueError: for an image of the wrong size or type; it names the item.
          StreamError: if the stream raises; it names the item. Either comes after the
            results of all earlier images.
        """
        size = None if self._programs.on_host else self.image_size
        source = sources.Stream(images, size)
        finished, position = {}, 0
        for numbers, columns in self._run(source, known):
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
        fitted to a budget in time: some networks move much memory for few multiply-adds.

            found = export.load("runs/demo/export")
            table = found.calibration.with_cost(classifier.milliseconds(), "ms")
            classifier.rule = fitting.fit(table, [0.5 * table.cost[-1]])[0].rule
        """
        running, given = self._full_launches()
        took = {}
        for program, values in given.items():
            times = [running.measure(program, values) for _ in range(repeats + 1)]
            per_image = self.batch_size * len(self.devices)
            took[program] = 1e3 * statistics.median(times[1:]) / per_image  # 0 compiles
        return np.cumsum([took[program] for program in self._programs.places])

    def peak_bytes(self) -> int:
        """Return the device memory of the largest launch, as the compiler plans it.

        All variables, the images in flight as far as they are on the device, and
        intermediate results. Images in host memory are not counted. Compiles each step
        once more.
        """
        running, given = self._full_launches()
        return max(running.bytes(program, values) for program, values in given.items())

    def _full_launches(self) -> tuple[runner.Runner, dict]:
        """Return a runner, and what a full launch of each program is given."""
        running = runner.Runner(
            self._programs, self.devices[0], self._variables[0], self
        )
        shape = (self.batch_size, self.image_size, self.image_size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        places = self._programs.places
        given = {
            program: np.full(self.batch_size, places.index(program), np.int32)
            for program in places
        }
        given[0] = jax.device_put(pixels, self.devices[0])
        if self._programs.on_host:  # what is cut does not depend on the image
            held = [self._programs.method.hold(image) for image in pixels]
            asks = np.zeros((len(held), *running.asked), np.int32)
            for program, place in list(given.items()):
                place = np.full(len(held), places.index(program), np.int32)
                step = self._programs.step(program)
                given[program] = protocol.cut(step, held, asks, place), place
        return running, given

    def _run(self, source, known=()) -> Iterator[runner.Leaving]:
        """Run a source to its end; yield who left, in the order of leaving."""
        course = self.rule.begin(self.in_flight * len(self.devices), known)
        running = [
            runner.Runner(self._programs, *both, self, course)
            for both in zip(self.devices, self._variables)
        ]
        while source.open or any(one.busy for one in running):
            moved = False
            for one in running:
                if one.ready:
                    moved = True
                    yield one.collect()
                else:
                    moved |= one.advance(source)
            waiting = [one for one in running if one.in_turn]
            if not moved and waiting:  # nothing to do but wait
                yield waiting[0].collect()


def load(
    directory,
    *,
    budget: float | None = None,
    thresholds: Iterable[float] | None = None,
    inputs: int | None = None,
    hold: bool = False,
    **options,
) -> Classifier:
    """Make a classifier from an export, to stop by one of three rules.

    Args:
      directory: written by `export`.
      budget: mean multiply-adds per image, see `export.Export.rule`.
      thresholds: of the confidence, one per exit but the last.
      inputs: every image leaves after so many steps.
      hold: keep each stream's mean at the budget, by `control`.
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
    if hold and budget is None:
        raise ValueError("`hold` is True, but there is no `budget` to hold")
    found = export.load(directory)
    if thresholds is not None:
        rule = stopping.ThresholdRule(thresholds)
    elif inputs is not None:
        rule = stopping.fixed(inputs, len(found.method.steps))
    else:
        rule = found.control(budget) if hold else found.rule(budget)[1]
    return Classifier(found.method, rule, image_size=found.image_size, **options)


def _plain(values) -> Result:
    predicted, confidence, exit, boxes, logits = values
    return Result(int(predicted), float(confidence), int(exit), boxes, logits)
