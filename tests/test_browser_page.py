"""docs/browser.html: an exported model in a real browser, with onnxruntime-web."""

import functools
import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.data.scenes.render import scene
from zeroseg_jax.draw import palette
from zeroseg_jax.segment import load

PAGE = Path(__file__).parents[1] / "docs/browser.html"
LABELS = ["ladybird", "bricks", "<b>grass</b> 草"]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *arguments):
        pass


def test_the_colours_are_those_of_pictures():
    listed = re.search(r"const COLOURS = (\[.*?\]);", PAGE.read_text(), re.DOTALL).group(1)
    assert json.loads(listed) == palette(24).tolist()


@pytest.mark.end_to_end
def test_a_photograph_in_a_browser(tmp_path):
    """Needs Playwright, Chromium as the system has it, npm for onnxruntime-web, and the extra onnx.

    The page asks a CDN for onnxruntime-web. Here it gets the files of npm in their place.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("jax2onnx")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or shutil.which("npm") is None:
        pytest.skip("there is no Chromium, or no npm")
    cdn = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"
    assert PAGE.read_text().count(cdn) == 2
    npm = ["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(tmp_path), "onnxruntime-web@1.30.0"]
    if subprocess.run(npm, capture_output=True).returncode:
        pytest.skip("npm cannot install onnxruntime-web")
    library = tmp_path / "node_modules/onnxruntime-web/dist"
    model, pixels = load("demo"), scene(16, "test").image
    model.export(tmp_path / "segment.onnx", LABELS, background=0.3)
    Image.fromarray(pixels).save(tmp_path / "scene.png")

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(PAGE.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    elsewhere: list[str] = []

    def serve(route):
        url = route.request.url
        if url.startswith(cdn):
            kind = "application/wasm" if url.endswith(".wasm") else "text/javascript"
            headers = {"Access-Control-Allow-Origin": "*"}
            route.fulfill(path=library / url.removeprefix(cdn), content_type=kind, headers=headers)
        elif url.startswith("http://127.0.0.1"):
            route.continue_()
        else:
            elsewhere.append(url)
            route.abort()

    try:
        with playwright.sync_playwright() as tool:
            browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.route("**/*", serve)
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/browser.html")
            message = page.locator("#message")
            page.set_input_files("#photo", str(tmp_path / "scene.png"))
            playwright.expect(message).to_have_text("Choose a model first.", timeout=30_000)
            page.set_input_files("#model", [str(tmp_path / "segment.onnx")])
            playwright.expect(message).to_contain_text("Choose both files together")
            page.set_input_files("#model", [str(tmp_path / f"segment.onnx{ending}") for ending in ("", ".json")])
            playwright.expect(message).to_contain_text("Segmented in", timeout=120_000)
            label_map = np.array(page.evaluate("window.labelMap")).reshape(pixels.shape[:2])
            legend = page.locator("#legend").inner_text()
            (tmp_path / "text.png").write_text("no picture")
            page.set_input_files("#photo", str(tmp_path / "text.png"))
            playwright.expect(message).to_contain_text("This did not work")
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
    expected = np.asarray(model.segment_fn(96, LABELS, background=0.3)(pixels[None]))[0]
    assert (label_map == expected).mean() >= 0.995 and len(np.unique(expected)) > 1
    shown = dict(enumerate(LABELS)) | {-1: "no label"}
    assert all((label in legend) == (label_map == i).any() for i, label in shown.items())
    assert elsewhere == [] or elsewhere == [url for url in elsewhere if url.endswith("favicon.ico")]
