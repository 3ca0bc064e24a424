"""A page in the browser on an export: drop an image, move the budget, see it decide.

    pip install -e '.[demo]'
    python -m anchornet_jax.programs.page runs/demo/export

It listens on 127.0.0.1 alone, unless `--host` says otherwise. Uploads are limited to
`MAX_BYTES` and the formats of `photos`; they and all else that is written are in a
temporary folder, which is removed at the end.
"""

import argparse
import contextlib
import html
import math
import os
import statistics
import tempfile
import time

from matplotlib.figure import Figure

from anchornet_jax.data import photos
from anchornet_jax.figures import pictures, plots
from anchornet_jax.inference import engine, export
from anchornet_jax.methods import method as protocol
from anchornet_jax.programs import predict

MAX_BYTES = 20 * 2**20  # of an upload
REPEATS = 5  # of a timing, of which the median is shown
TEXT = """# Where AnchorNet looks, and when it is sure
Choose or drop a photo, then move the budget: the mean cost per image that the stopping
rule was fitted to. A larger one lets the networks look at more patches."""


class Page:
    """What the page computes; the rest is Gradio.

    Attributes:
      found: the export.
      budgets: that rules were fitted to, in multiply-adds, rising.
    """

    def __init__(self, found: export.Export):
        """Compile everything, so that the first visitor does not wait.

        Raises:
          ValueError: if the export has no rules.
        """
        self.found = found
        _, rule = found.rule()
        self.budgets = sorted(found.rules)
        self._trace = protocol.make_trace(found.method)
        self._classifier = engine.Classifier(
            found.method, rule, image_size=found.image_size, batch_size=1, in_flight=1
        )
        predict.warm(self._classifier)

    def read(self, file):
        """Return an image file as the networks see it, uint8 [H, W, 3].

        Raises:
          ValueError: if it cannot be read.
        """
        resize = self.found.metadata["preprocessing"]["resize"]
        return photos.read(file, image_size=self.found.image_size, resize=resize)

    def show(self, image, budget: float) -> tuple[str, Figure, Figure]:
        """Classify one image within a budget.

        Args:
          image: from `read`.
          budget: mean multiply-adds per image.

        Returns:
          What happened, as HTML; the picture of the patches, heatmap and inputs; the
          growing confidence.
        """
        budget, rule = self.found.rule(budget)
        self._classifier.rule = rule
        times = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            (result,) = self._classifier.stream(image[None])
            times.append(1000 * (time.perf_counter() - begun))
        arrays = self._trace(image[None], rule)
        name = html.escape(self.found.classes[result.predicted])
        text = (
            f"<p id='verdict'><b>{name}</b>, {result.confidence:.1%} sure after "
            f"{html.escape(self.found.exits[result.exit])}: "
            f"{self.found.macs[result.exit] / 1e6:.0f} M multiply-adds, "
            f"{statistics.median(times):.1f} ms here. The budget is "
            f"{budget / 1e6:.0f} M on average over many images.</p>"
        )
        confidence = arrays["confidence"][0]
        return (
            text,
            pictures.examples(arrays, self.found.classes, self.found.exits, [""]),
            plots.confidence(
                confidence, self.found.exits, self.found.macs, result.exit
            ),
        )


def build(page: Page):
    """Return the page as `gradio.Blocks`."""
    import gradio as gr  # an extra: everything else works without it

    def read(file):
        try:
            return page.read(file) if file else None
        except ValueError as error:
            raise gr.Error(f"This image cannot be read: {error}.") from error

    def show(image, budget):
        return (None, None, None) if image is None else page.show(image, 1e6 * budget)

    # Rounded up: the slider shows whole millions, and its ends must be budgets.
    low, high = (math.ceil(page.budgets[end] / 1e6) for end in (0, -1))
    with gr.Blocks(title="AnchorNet", analytics_enabled=False) as blocks:
        pixels = gr.State()
        gr.Markdown(TEXT)
        with gr.Row():
            file = gr.Image(
                label="Image",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                height=320,
            )
            with gr.Column(scale=2):
                budget = gr.Slider(
                    *(low, high),
                    value=high,
                    step=1,
                    label="Budget: million multiply-adds per image",
                    elem_id="budget",
                )
                verdict = gr.HTML()
                growing = gr.Plot(
                    label="Confidence after each input", elem_id="growing"
                )
        looked = gr.Plot(label="Where it looked", elem_id="looked")
        outputs = [verdict, looked, growing]
        changed = file.change(read, file, pixels, api_visibility="private")
        changed.then(show, [pixels, budget], outputs, api_visibility="private")
        budget.change(
            show,
            [pixels, budget],
            outputs,
            trigger_mode="always_last",  # where the hand comes to rest
            api_visibility="private",
        )
    return blocks


@contextlib.contextmanager
def serve(page: Page, *, host: str = "127.0.0.1", port: int | None = None):
    """Serve the page as long as the context lasts; give its `gradio.Blocks`.

    Args:
      page: what is served.
      host: who may visit; 0.0.0.0 means everybody.
      port: None takes one that is free.

    Raises:
      OSError: if the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="anchornet_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when components are made
        blocks = build(page)
        blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_BYTES,
            prevent_thread_lock=True,
            quiet=True,
        )
        try:
            yield blocks
        finally:
            blocks.close()


def main(arguments: list[str] | None = None) -> None:
    """Serve the page until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", help="directory of an export")
    parser.add_argument("--host", default="127.0.0.1", help="who may visit")
    parser.add_argument("--port", type=int, default=7860)
    flags = parser.parse_args(arguments)
    try:
        page = Page(export.load(flags.export))
        with serve(page, host=flags.host, port=flags.port) as blocks:
            print(f"Open {blocks.local_url} in a browser; Ctrl-C ends it.", flush=True)
            blocks.block_thread()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        parser.error(f"{error}; install the extra: pip install -e '.[demo]'")


if __name__ == "__main__":
    main()
