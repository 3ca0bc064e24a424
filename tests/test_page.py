"""The page in the browser: what it computes, and, where there is one, in a browser."""

import io
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from anchornet_jax.inference import export, stopping
from anchornet_jax.programs import page
from tests.test_export import (
    CLASSES,
    SIZE,
    exported,  # noqa: F401
    method,  # noqa: F401
)

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOW, HIGH = 2e6, 9e6  # budgets; the lower rule lets everybody leave at the glance


@pytest.fixture(scope="module")
def shown(exported):  # noqa: F811
    rules = {
        HIGH: stopping.ThresholdRule([2.0, 2.0]),
        LOW: stopping.ThresholdRule([0.0, 0.0]),
    }
    return page.Page(export.load(exported)._replace(rules=rules))


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def exits(figure):
    """Return where a figure of the confidence says EXIT."""
    texts = [text.get_text() for text in figure.axes[0].texts]
    return [t for t, text in enumerate(texts) if text.endswith("EXIT")]


def test_show(shown, photo):
    image = shown.read(photo)
    assert image.shape == (SIZE, SIZE, 3)
    macs = [m / 1e6 for m in shown.found.macs]
    for budget, exit in ((LOW, 0), (HIGH, 2)):
        text, looked, growing = shown.show(image, budget)
        assert re.search(f"<b>[{''.join(CLASSES)}]</b>, [0-9.]+% sure after", text)
        assert f"after {shown.found.exits[exit]}: {macs[exit]:.0f} M" in text
        assert float(re.search(r"([0-9.]+) ms here", text)[1]) > 0
        assert f"budget is {2 if exit == 0 else 9} M" in text
        assert exits(growing) == [exit]
        framed = [len(axes.texts) for axes in looked.axes[1:]]  # EXIT is written there
        assert framed == [int(t == exit) for t in range(3)]
    between = float(shown.found.calibration.cost[1])  # fitted on the spot
    text, *_ = shown.show(image, between)
    assert f"budget is {between / 1e6:.0f} M" in text


def test_class_names_are_no_markup(shown, photo, monkeypatch):
    evil = shown.found._replace(classes=["<script>", "<script>", "<script>"])
    monkeypatch.setattr(shown, "found", evil)
    text, *_ = shown.show(shown.read(photo), HIGH)
    assert "&lt;script&gt;" in text and "<script>" not in text


def test_an_export_without_rules(shown):
    with pytest.raises(ValueError, match="no rules"):
        page.Page(shown.found._replace(rules={}))


@pytest.mark.parametrize("arguments", [["/nowhere"], ["/nowhere", "--port", "1"]])
def test_no_export(arguments, capsys):
    with pytest.raises(SystemExit):
        page.main(arguments)
    assert "export '/nowhere'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def url(shown):
    pytest.importorskip("gradio")
    with page.serve(shown) as blocks:
        yield blocks.local_url
        folder = pathlib.Path(page.os.environ["GRADIO_TEMP_DIR"])
        assert folder.name.startswith("anchornet_") and folder.is_dir()
    assert not folder.exists()  # with all uploads


def test_it_listens_here_alone(url):
    assert url.startswith("http://127.0.0.1:")


def post(url, content: bytes):
    """Upload a file as a browser does."""
    head = 'Content-Disposition: form-data; name="files"; filename="a.png"'
    body = f"--x\r\n{head}\r\n\r\n".encode() + content + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{url}gradio_api/upload", body, kind)
    return urllib.request.urlopen(request).read().decode()


def test_uploads_are_limited(url):
    folder = page.os.environ["GRADIO_TEMP_DIR"]
    assert folder in post(url, b"small")
    with pytest.raises(urllib.error.HTTPError, match="413"):
        post(url, bytes(page.MAX_BYTES + 1))


def test_uploads_together_are_limited(url, monkeypatch):
    folder = pathlib.Path(page.os.environ["GRADIO_TEMP_DIR"])
    monkeypatch.setattr(page, "MAX_TOTAL", 3000)
    sent = pathlib.Path(post(url, bytes(2000)).strip('[]"'))
    assert sent.is_relative_to(folder)
    with pytest.raises(urllib.error.HTTPError, match="507"):
        post(url, bytes(2000))
    os.utime(sent, (1, 1))  # long ago
    post(url, bytes(1999))
    assert not sent.exists()


def test_uploads_leave_with_their_visitor(tmp_path):
    uploads = page.Uploads(tmp_path)
    for name, session in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_bytes(b"pixels")
        uploads.belongs(tmp_path / name, session)
    uploads.leave("one")
    uploads.leave("nobody")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:1", 200), ("evil.example", 400), ("", 400)]
)
def test_it_answers_to_its_own_names(url, host, status):
    """A page of somebody else's, whose name leads here, is not answered."""
    request = urllib.request.Request(url, headers={"Host": host})
    try:
        found = urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        found = error.code
    assert found == status


def test_names():
    assert page.names("127.0.0.1") == ["127.0.0.1", "localhost"]
    assert "proxy.example" in page.names("127.0.0.1", ["proxy.example"])
    assert socket.gethostname() in page.names("0.0.0.0")


CHILD = """
import sys
from anchornet_jax import models
from anchornet_jax.programs import page
from tests import tiny
models.MODELS["tiny"] = (tiny.Tiny, {})
models.MODELS["tiny_anchornet"] = (tiny.TinyAnchorNet, {})
page.main([sys.argv[1], "--port=7869"])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_uploads_go_when_it_is_stopped(exported, tmp_path, name):  # noqa: F811
    pytest.importorskip("gradio")
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, exported],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        url = re.search(r"Open (\S+) in a browser", process.stdout.readline())[1]
        assert str(tmp_path) in post(url, b"small")
        process.send_signal(getattr(signal, name))
        assert process.wait(60) == 128 + getattr(signal, name)
    assert not list(tmp_path.glob("anchornet_*"))


@pytest.fixture
def tab(url):
    """Return the page, open in a headless browser."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no Chromium")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        tab = browser.new_page()
        tab.goto(url)
        tab.wait_for_selector("input[type=file]", state="attached")
        yield tab
        browser.close()


def test_in_a_browser(tab, photo):
    """Open, upload, read the result, move the budget, read it again."""
    tab.set_input_files("input[type=file]", photo)
    tab.wait_for_selector("#verdict >> text=2 patches")  # the budget starts at the top
    assert "The budget is 9 M" in tab.inner_text("#verdict")
    for name in ("looked", "growing"):
        figure = tab.wait_for_selector(f"#{name} img")
        assert figure.evaluate("image => image.naturalWidth") > 300
    tab.locator("#budget input[type=range]").fill("2")
    tab.wait_for_selector("#verdict >> text=sure after glance")
    assert "The budget is 2 M" in tab.inner_text("#verdict")


def test_a_broken_upload_in_a_browser(tab, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (500, 500), "red").save(file, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(file.getvalue()[:-300])
    tab.set_input_files("input[type=file]", tmp_path / "cut.jpg")
    tab.wait_for_selector("text=This image cannot be read: it is damaged")
