"""The page: what it asks of a model, what it answers over HTTP, and what a browser sees."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.app import Page, annotations, main, make_page, split_words, write_files
from zeroseg_jax.data.scenes.render import scene
from zeroseg_jax.errors import InputError
from zeroseg_jax.segment import load

ROOT = Path(__file__).parents[1]
OPTIONS = ("", "none", 0.5, "background", True)
"""Readout, background, its threshold, its words, guided filter."""


@pytest.fixture(scope="module")
def model():
    return load("demo")


@pytest.fixture
def photograph(tmp_path) -> Path:
    Image.fromarray(scene(16, "test").image).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def test_words():
    assert split_words(" a cat, grass,\n\nthe sky ,") == ["a cat", "grass", "the sky"]


@pytest.mark.end_to_end
def test_other_words_do_not_encode_again(model, photograph, monkeypatch):
    page = Page(model)
    first = page.segment(photograph, "ladybird, bricks", *OPTIONS)
    monkeypatch.setattr(page.model, "encode_batch", None)
    second = page.segment(photograph, "heart, bricks, grass", *OPTIONS)
    assert first.labels == ["ladybird", "bricks"] and second.labels == ["heart", "bricks", "grass"]


def test_the_answer_is_that_of_segment(model, photograph):
    result = Page(model).segment(photograph, "ladybird, bricks", "", "words", 0.5, "grass", False)
    expected = model.segment(photograph, ["ladybird", "bricks"], background=["grass"], guide=0.0)
    np.testing.assert_array_equal(result.label_map, expected.label_map)


def test_names_and_files(model, photograph, tmp_path):
    result = Page(model).segment(photograph, "ladybird, bricks", *OPTIONS)
    names = annotations(result)
    assert sum(region.sum() for region, _ in names) == result.label_map.size
    assert all(name.startswith(("ladybird", "bricks")) and "score" in name for _, name in names)
    overlay, mask, coco = map(Path, write_files(result, tmp_path))
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), result.label_map)
    assert Image.open(overlay).size[0] >= 96
    assert {a["category"] for a in json.loads(coco.read_text())} <= {"ladybird", "bricks"}


def test_numbers_stay_behind_words_of_every_script(model, photograph):
    result = Page(model).segment(photograph, "ماء, 草, घास, вода", *OPTIONS)
    names = [name for _, name in annotations(result)]
    assert names and all(name.split("  \u200e")[0] in result.labels for name in names)


@pytest.mark.parametrize(
    "image,words,message",
    [
        (None, "cat", "there is no photograph"),
        ("here", "", "the list of labels is empty"),
        ("here", "a,a", "is there twice"),
    ],
)
def test_what_cannot_be_answered(model, photograph, image, words, message):
    with pytest.raises(InputError, match=message):
        Page(model).segment(photograph if image else None, words, *OPTIONS)


def test_a_model_that_does_not_load(capsys, tmp_path):
    pytest.importorskip("gradio")
    assert main(["--model", str(tmp_path / "nothing")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_over_http(model, photograph):
    pytest.importorskip("gradio")
    from gradio_client import Client, handle_file

    page = make_page(model, "demo")
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", share=False)
    try:
        client = Client(url, verbose=False)
        labels, segments, files = client.predict(
            handle_file(photograph), "ladybird, bricks", *OPTIONS, api_name="/answer"
        )
        assert {a["label"].split("  ")[0] for a in labels["value"]["annotations"]} <= {"ladybird", "bricks"}
        assert Image.open(segments).size == (96, 96)
        assert [Path(file).name for file in files] == ["overlay.png", "mask.png", "coco.json"]
        pictures, archive = client.predict(
            [handle_file(photograph)], "ladybird, bricks", *OPTIONS, api_name="/answer_folder"
        )
        assert len(pictures) == 1
        assert sorted(zipfile.ZipFile(archive).namelist()) == ["scene_coco.json", "scene_mask.png", "scene_overlay.png"]
    finally:
        page.close()


def pictures(page: Any) -> list[str]:
    """The addresses of the image and of the regions over it."""
    return [element.get_attribute("src") for element in page.query_selector_all("#labels img")]


@pytest.mark.end_to_end
def test_in_a_browser(photograph, tmp_path):
    """Needs Playwright, and Chromium as the system has it."""
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", "-m", "zeroseg_jax.app", "--model", "demo", "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = next(line for line in server.stdout if "http://127.0.0.1" in line).split()[-1]
        with playwright.sync_playwright() as tool:
            browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            addresses: list[str] = []
            page.on("request", lambda request: addresses.append(request.url))
            page.goto(url)
            page.wait_for_selector("#words")
            page.set_input_files("input[type=file] >> nth=0", str(photograph))
            page.wait_for_selector("img")
            page.fill("#words textarea, #words input", "ladybird, heart, bricks")
            page.click("#segment")
            page.wait_for_selector("#labels >> text=bricks", timeout=120_000)
            before = pictures(page)
            page.fill("#words textarea, #words input", "wood, grass")
            begun = time.monotonic()
            page.click("#segment")
            page.wait_for_selector("#labels >> text=/wood|grass/", timeout=60_000)
            assert time.monotonic() - begun < 30
            assert pictures(page) != before
            with page.expect_download() as download:
                page.click("#files a >> nth=1")
            assert Image.open(download.value.path()).size == (96, 96)
            elsewhere = [
                a for a in addresses if not a.startswith((url.rstrip("/"), "data:", "blob:", "http://localhost"))
            ]
            assert elsewhere == []
            browser.close()
    finally:
        server.terminate()
        server.wait()
