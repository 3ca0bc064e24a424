"""A page in the browser on an export: drop an image, move the budget, see it decide.

    pip install -e '.[demo]'
    python -m anchornet_jax.programs.page runs/demo/export

It listens on 127.0.0.1 alone, unless `--host` says otherwise, and answers to its own
names alone: a page of somebody else's that a visitor has open cannot ask it in his name.
Uploads are limited to `MAX_BYTES` each, `MAX_TOTAL` together, and the formats of
`photos`. Each is removed when its visitor leaves, or after `MAX_SECONDS`; they and all
else that is written are in a temporary folder, which is removed at the end, also when the
page is stopped by SIGTERM or SIGHUP.
"""

import argparse
import collections
import contextlib
import html
import math
import os
import pathlib
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time

from matplotlib.figure import Figure

from anchornet_jax.data import photos
from anchornet_jax.figures import pictures, plots
from anchornet_jax.inference import engine, export
from anchornet_jax.methods import method as protocol
from anchornet_jax.programs import predict

MAX_BYTES = 20 * 2**20  # of an upload
MAX_TOTAL = 1000 * 2**20  # of all that are kept
MAX_SECONDS = 3600  # that one is kept
UPLOAD = "/gradio_api/upload"
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
        self._turn = threading.Lock()  # visitors share the classifier and its rule

    def read(self, file):
        """Return an image file as the networks see it, uint8 [H, W, 3].

        Raises:
          ValueError: if it cannot be read.
        """
        return photos.read(file, **predict.seen(self.found))

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
        times = []
        with self._turn:
            self._classifier.rule = rule
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


class Uploads:
    """What visitors have sent: bounded, and removed when they leave."""

    def __init__(self, folder):
        """Watch over a folder, which is the page's own."""
        self._folder = pathlib.Path(folder)
        self._of = collections.defaultdict(set)  # {session: files}
        self._lock = threading.Lock()

    def belongs(self, file, session: str) -> None:
        """Remember whose an upload is."""
        with self._lock:
            self._of[session].add(pathlib.Path(file))

    def leave(self, session: str) -> None:
        """Remove the uploads of a visitor who has left."""
        with self._lock:
            for file in self._of.pop(session, ()):
                file.unlink(missing_ok=True)

    def room(self, size: int) -> bool:
        """Say whether so many bytes may come; what is old is removed first."""
        total, now = 0, time.time()
        for file in self._folder.rglob("*"):
            with contextlib.suppress(OSError):
                about = file.stat()
                if not file.is_file():
                    continue
                if now - about.st_mtime > MAX_SECONDS:
                    file.unlink()
                else:
                    total += about.st_size
        return total + size <= MAX_TOTAL


class Bounded:
    """ASGI: refuse uploads for which there is no room, before they are received."""

    def __init__(self, app, uploads: Uploads):
        """Wrap an application."""
        self._app, self._uploads = app, uploads

    async def __call__(self, scope, receive, send):
        """Answer 507 in place of the application where there is no room."""
        if scope["type"] == "http" and scope["path"].endswith(UPLOAD):
            from starlette.responses import PlainTextResponse

            headers = dict(scope["headers"])
            size = int(headers.get(b"content-length", MAX_BYTES))
            if not self._uploads.room(size):
                text = "The page keeps no more uploads now; try again later."
                await PlainTextResponse(text, 507)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def build(page: Page, uploads: Uploads):
    """Return the page as `gradio.Blocks`."""
    import gradio as gr  # an extra: everything else works without it

    def read(file, request: gr.Request):
        if not file:
            return None
        uploads.belongs(file, request.session_hash)
        try:
            return page.read(file)
        except ValueError as error:
            raise gr.Error(f"This image cannot be read: {error}.") from error

    def leave(request: gr.Request):
        uploads.leave(request.session_hash)

    def show(image, budget):
        return (None, None, None) if image is None else page.show(image, 1e6 * budget)

    # Rounded up: the slider shows whole millions, and its ends must be budgets.
    low, high = (math.ceil(page.budgets[end] / 1e6) for end in (0, -1))
    high = max(high, low + 1)  # an export may have one budget alone
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
        blocks.unload(leave)
    return blocks


def names(host: str, others=()) -> list[str]:
    """Return the names under which a page on this host may be asked for."""
    found = {"127.0.0.1", "localhost", host, *others}
    if host == "0.0.0.0":  # whoever it is, by any name of this machine
        found |= {socket.gethostname(), socket.getfqdn()}
        with contextlib.suppress(OSError):
            found |= set(socket.gethostbyname_ex(socket.gethostname())[2])
    return sorted(found)


@contextlib.contextmanager
def serve(page: Page, *, host: str = "127.0.0.1", port: int | None = None, others=()):
    """Serve the page as long as the context lasts; give its `gradio.Blocks`.

    Args:
      page: what is served.
      host: who may visit; 0.0.0.0 means everybody.
      port: None takes one that is free.
      others: more names that it is asked for by, behind a proxy say.

    Raises:
      OSError: if the port is taken.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    with tempfile.TemporaryDirectory(prefix="anchornet_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when components are made
        uploads = Uploads(folder)
        blocks = build(page, uploads)
        allowed = names(host, others)
        blocks.launch(
            app_kwargs={
                "middleware": [
                    Middleware(TrustedHostMiddleware, allowed_hosts=allowed),
                    Middleware(Bounded, uploads=uploads),
                ]
            },
            show_error=True,
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
    parser.add_argument(
        "--name", action="append", default=[], help="it is asked for by, behind a proxy"
    )
    flags = parser.parse_args(arguments)
    for one in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(one, lambda number, _: sys.exit(128 + number))
    try:
        page = Page(export.load(flags.export))
        with serve(page, host=flags.host, port=flags.port, others=flags.name) as blocks:
            print(f"Open {blocks.local_url} in a browser; Ctrl-C ends it.", flush=True)
            blocks.block_thread()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        parser.error(f"{error}; install the extra: pip install -e '.[demo]'")


if __name__ == "__main__":
    main()
