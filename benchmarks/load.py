"""What many users at once do to it: waits, throughput and memory of stream and page.

    python benchmarks/load.py runs/demo/export
    python benchmarks/load.py runs/demo/export --clients 1 4 --seconds 5  # try it

Each client sends one image, waits for its answer and sends the next, for some seconds, on
this machine alone. `stream`: one `Classifier.stream` that all share, as a service would.
`page`: what the page computes for a visitor, figures included. Every answer carries the
number of its image: none may be lost, come twice or be of another. Prints images per
second, the median and the 99th percentile of the waits, and the process's memory before
and after; writes results/load.json beside this file.
"""

import argparse
import collections
import json
import os
import pathlib
import queue
import statistics
import threading
import time

import jax
import numpy as np
from matplotlib import pyplot

from anchornet_jax.inference import engine, export
from anchornet_jax.programs import page
from anchornet_jax.runtime import files, memory

RESULTS = pathlib.Path(__file__).parent / "results" / "load.json"
END = None  # no more images


class Stream:
    """One stream of the engine that serves all clients."""

    def __init__(self, found, options):
        """Compile, and start the thread that answers."""
        _, rule = found.rule()
        self._classifier = engine.Classifier(
            found.method, rule, image_size=found.image_size, batch_size=options.batch
        )
        size = found.image_size
        self._classifier.classify(
            np.zeros((2 * options.batch, size, size, 3), np.uint8)
        )
        self._waiting, self._sent = queue.Queue(), collections.deque()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _images(self):
        """Yield images as they come; a pause is filled up, so that nobody waits long."""
        while (item := self._next()) is not END:
            self._sent.append(item)
            yield item[0]

    def _next(self):
        try:
            return self._waiting.get(timeout=0.02)
        except queue.Empty:
            return self._filling()

    def _filling(self):
        size = self._classifier.image_size
        return np.zeros((size, size, 3), np.uint8), lambda _: None

    def _answer(self):
        for result in self._classifier.stream(self._images()):
            _, answer = self._sent.popleft()
            answer(result)

    def ask(self, image) -> int:
        """Return the class of an image, when it is known."""
        found = queue.Queue(1)
        self._waiting.put((image, found.put))
        return found.get().predicted

    def close(self) -> None:
        """End the stream."""
        self._waiting.put(END)
        self._thread.join()


class Visitors:
    """What the page computes for one visitor after the other."""

    def __init__(self, found, options):
        """Compile."""
        self._page = page.Page(found)
        self._classes = found.classes

    def ask(self, image) -> int:
        """Return the class that the page shows."""
        text, *figures = self._page.show(image, max(self._page.budgets))
        for figure in figures:
            pyplot.close(figure)
        name = text.partition("<b>")[2].partition("</b>")[0]
        return self._classes.index(name)

    def close(self) -> None:
        """Do nothing: it has no threads."""


def attack(service, images, wanted, clients: int, seconds: float) -> dict:
    """Let clients ask for some seconds; return what they saw."""
    waits, wrong, end = [], [], time.monotonic() + seconds

    def client(seed):
        rng = np.random.default_rng(seed)
        while time.monotonic() < end:
            number = int(rng.integers(len(images)))
            begun = time.perf_counter()
            answer = service.ask(images[number])
            waits.append(time.perf_counter() - begun)
            if answer != wanted[number]:
                wrong.append(number)

    before, begun = memory.resident_mb(), time.monotonic()
    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    return {
        "clients": clients,
        "images": len(waits),
        "images_per_second": len(waits) / took,
        "median_ms": 1e3 * statistics.median(waits),
        "percentile_99_ms": 1e3 * float(np.percentile(waits, 99)),
        "wrong": len(wrong),
        "memory_mb_before": before,
        "memory_mb_after": memory.resident_mb(),
    }


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("export", help="directory of an export")
    add("--clients", type=int, nargs="+", default=[1, 10, 50], help="at once")
    add("--seconds", type=float, default=60, help="of each run")
    add("--batch", type=int, default=16, help="images of a launch of the stream")
    add("--services", nargs="+", default=["stream", "page"], help="stream, page")
    add("--output", type=pathlib.Path, default=RESULTS, help="results are written here")
    options = parser.parse_args()
    if jax.default_backend() == "cpu":
        memory.keep()
    pyplot.switch_backend("agg")
    found = export.load(options.export)
    size = found.image_size
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (64, 8, 8, 3), np.uint8)
    images = coarse.repeat(-(-size // 8), 1).repeat(-(-size // 8), 2)[:, :size, :size]
    rows = []
    for name in options.services:
        service = {"stream": Stream, "page": Visitors}[name](found, options)
        wanted = [service.ask(image) for image in images]
        for clients in options.clients:
            row = {"service": name}
            row |= attack(service, images, wanted, clients, options.seconds)
            rows.append(row)
            print(
                f"{name:7} {clients:3} clients: {row['images_per_second']:7.1f} images/s, "
                f"median {row['median_ms']:7.1f} ms, 99 % within "
                f"{row['percentile_99_ms']:7.1f} ms, {row['wrong']} wrong, memory "
                f"{row['memory_mb_before']:.0f} to {row['memory_mb_after']:.0f} MB",
                flush=True,
            )
        service.close()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    device = jax.local_devices()[0].device_kind
    about = {"device": device, "cores": len(os.sched_getaffinity(0)), "rows": rows}
    files.write_json(options.output, json.loads(json.dumps(about)))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
