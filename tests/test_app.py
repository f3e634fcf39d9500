"""The page: the model behind it, its answers over HTTP, and what a browser shows."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from zeroseg_jax.app import SHOWN, Page, annotations, main, make_page, split_words, write_files
from zeroseg_jax.data.scenes.render import scene
from zeroseg_jax.draw import palette
from zeroseg_jax.errors import InputError
from zeroseg_jax.segment import load

ROOT = Path(__file__).parents[1]
OPTIONS = ("", "none", 0.5, "background", True)
"""Readout, background, its threshold, its words, guided filter."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
    regions, colours = annotations(result)
    assert sum(region.sum() for region, _ in regions) == result.label_map.size
    assert all(name.startswith(("ladybird", "bricks")) and "score" in name for _, name in regions)
    assert colours.keys() == {name for _, name in regions}
    overlay, mask, coco = map(Path, write_files(result, tmp_path))
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), result.label_map)
    assert Image.open(overlay).size[0] >= 96
    assert {a["category"] for a in json.loads(coco.read_text())} <= {"ladybird", "bricks"}


def test_a_large_photograph_is_shown_small_and_written_large(model, photograph, tmp_path):
    large = tmp_path / "large.png"
    Image.open(photograph).resize((1200, 900)).save(large)
    page = Page(model)
    shown = page.segment(large, "ladybird, bricks", *OPTIONS, longest=SHOWN)
    written = page.segment(large, "ladybird, bricks", *OPTIONS)
    assert shown.label_map.shape == (600, 800) and written.label_map.shape == (900, 1200)
    smaller = np.asarray(
        Image.fromarray(written.label_map.astype(np.uint8)).resize((800, 600), Image.Resampling.NEAREST)
    )
    assert (smaller == shown.label_map).mean() > 0.98


def test_the_colours_are_those_of_the_overlay(model, photograph):
    """A label that is absent must not shift the colours of the labels behind it."""
    regions, colours = annotations(Page(model).segment(photograph, "moon, ladybird, bricks", *OPTIONS))
    assert not any(name.startswith("moon") for _, name in regions)
    by_word = {name.split()[0]: colour for name, colour in colours.items()}
    expected = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette(3)]
    assert by_word == {"ladybird": expected[1], "bricks": expected[2]}


def test_numbers_stay_behind_words_of_every_script(model, photograph):
    result = Page(model).segment(photograph, "ماء, 草, घास, вода", *OPTIONS)
    names = [name for _, name in annotations(result)[0]]
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
        labels, segments = client.predict(handle_file(photograph), "ladybird, bricks", *OPTIONS, api_name="/show")
        assert {a["label"].split("  ")[0] for a in labels["value"]["annotations"]} <= {"ladybird", "bricks"}
        assert Image.open(segments).size == (96, 96)
        files = client.predict(handle_file(photograph), "ladybird, bricks", *OPTIONS, api_name="/write")
        assert [Path(file).name for file in files] == ["overlay.png", "mask.png", "coco.json"]
        overlays, archive = client.predict(
            [handle_file(photograph)], "ladybird, bricks", *OPTIONS, api_name="/segment_all"
        )
        assert len(overlays) == 1
        assert sorted(zipfile.ZipFile(archive).namelist()) == ["scene_coco.json", "scene_mask.png", "scene_overlay.png"]
    finally:
        page.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The address of a running page with the demo."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", "-m", "zeroseg_jax.app", "--model", "demo", "--port", str(port)]
    folder, environment = tmp_path_factory.mktemp("server"), os.environ | {"PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield next(line for line in server.stdout if "http://127.0.0.1" in line).split()[-1]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium as the system has it. It needs Playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser_page(browser, address) -> Iterator[Any]:
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#words")
    yield page
    page.close()


def shown(page: Any) -> list[str]:
    """The addresses of the image and of the regions over it. Gradio names files by their content."""
    return [element.get_attribute("src") for element in page.query_selector_all("#labels img")]


def segment(page: Any, words: str | None = None) -> list[str]:
    """Types words and clicks; returns the pictures once they have changed."""
    before = shown(page)
    if words is not None:
        page.fill("#words textarea, #words input", words)
    page.click("#segment")
    changed = "before => [...document.querySelectorAll('#labels img')].map(e => e.src).join() != before.join()"
    page.wait_for_function(changed, arg=before, timeout=120_000)
    return shown(page)


def choose_photograph(page: Any, photograph: Path) -> None:
    page.set_input_files("input[type=file] >> nth=0", str(photograph))
    page.wait_for_selector("img")


@pytest.mark.end_to_end
def test_words_change_the_picture(browser_page, address, photograph):
    addresses: list[str] = []
    browser_page.on("request", lambda request: addresses.append(request.url))
    browser_page.reload()
    browser_page.wait_for_selector("#words")
    choose_photograph(browser_page, photograph)
    segment(browser_page, "ladybird, heart, bricks")
    browser_page.wait_for_selector("#labels >> text=bricks")
    begun = time.monotonic()
    segment(browser_page, "wood, grass")
    assert time.monotonic() - begun < 30
    browser_page.wait_for_selector("#labels >> text=/wood|grass/")
    expected = (address.rstrip("/"), "data:", "blob:", "http://localhost")
    assert [a for a in addresses if not a.startswith(expected)] == []


@pytest.mark.end_to_end
def test_bad_input_is_told_on_the_page(browser_page, photograph, tmp_path):
    browser_page.click("#segment")
    browser_page.wait_for_selector("text=there is no photograph")
    (tmp_path / "letter.png").write_text("this is no image")
    browser_page.set_input_files("input[type=file] >> nth=0", str(tmp_path / "letter.png"))
    browser_page.wait_for_selector("img[src*=letter]", state="attached")
    browser_page.click("#segment")
    browser_page.wait_for_selector("text=/the image letter.png cannot be read/")
    browser_page.reload()
    choose_photograph(browser_page, photograph)
    browser_page.fill("#words textarea, #words input", "grass, grass")
    browser_page.click("#segment")
    browser_page.wait_for_selector("text=the label 'grass' is there twice")


@pytest.mark.end_to_end
def test_every_option_changes_the_picture(browser_page, photograph):
    choose_photograph(browser_page, photograph)
    pictures = [segment(browser_page, "ladybird, heart, bricks")]
    browser_page.click("button:has-text('options')")
    browser_page.click("#readout input")
    browser_page.click("[role=option]:has-text('maskclip')")
    pictures.append(segment(browser_page))
    browser_page.uncheck("#guide input")
    pictures.append(segment(browser_page))
    browser_page.check("#background input[value=threshold]")
    pictures.append(segment(browser_page))
    browser_page.fill("#threshold input[type=number]", "0.9")
    browser_page.press("#threshold input[type=number]", "Tab")
    pictures.append(segment(browser_page))
    browser_page.fill("#phrases textarea, #phrases input", "bricks, wood")
    browser_page.check("#background input[value=words]")
    browser_page.fill("#words textarea, #words input", "ladybird, heart")
    pictures.append(segment(browser_page))
    assert len({tuple(picture) for picture in pictures}) == len(pictures)


@pytest.mark.end_to_end
def test_the_mouse_names_the_region_under_it(browser_page, photograph):
    choose_photograph(browser_page, photograph)
    segment(browser_page, "ladybird, heart, bricks")
    image = browser_page.wait_for_selector("#labels .base-image")
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    regions, _ = annotations(Page(load("demo")).segment(photograph, "ladybird, heart, bricks", *OPTIONS))
    side, scale = 96, min(box["width"], box["height"]) / 96
    assert len(regions) > 1
    for region, name in regions:
        row, column = np.argwhere(ndimage.binary_erosion(region, iterations=2)).mean(axis=0).astype(int)
        if not region[row, column]:  # the centre of a ring
            row, column = np.argwhere(ndimage.binary_erosion(region, iterations=2))[0]
        x = box["x"] + box["width"] / 2 + scale * (column + 0.5 - side / 2)
        y = box["y"] + box["height"] / 2 + scale * (row + 0.5 - side / 2)
        browser_page.mouse.move(x, y)
        assert browser_page.inner_text("#under-mouse").split() == name.split()
        fading = "() => [...document.querySelectorAll('#labels .mask')].filter(e => getComputedStyle(e).opacity > 0.8)"
        browser_page.wait_for_function(f"{fading}.length == 1")  # the others fade
    browser_page.mouse.move(1, 1)
    assert not browser_page.is_visible("#under-mouse")


@pytest.mark.end_to_end
def test_segments_and_downloads(browser_page, photograph, model):
    words = "ladybird, heart, bricks"
    choose_photograph(browser_page, photograph)
    segment(browser_page, words)
    browser_page.click("button[role=tab]:has-text('patches')")
    browser_page.wait_for_selector("#segments img")
    browser_page.click("#make-files")
    browser_page.wait_for_selector("#files a >> nth=2", timeout=60_000)
    paths = []
    for i in range(3):
        with browser_page.expect_download() as download:
            browser_page.click(f"#files a >> nth={i}")
        paths.append(Path(download.value.path()))
    expected = Page(model).segment(photograph, words, *OPTIONS)
    assert Image.open(paths[0]).size == expected.overlay().size
    np.testing.assert_array_equal(np.asarray(Image.open(paths[1])), expected.label_map)
    assert json.loads(paths[2].read_text()) == expected.to_coco()
    browser_page.click("button[role=tab]:has-text('labels')")
    segment(browser_page, "wood, grass")
    browser_page.wait_for_selector("#files a", state="detached")  # they were those of other words


@pytest.mark.end_to_end
def test_no_files_without_a_photograph(browser_page):
    browser_page.click("#make-files")
    browser_page.wait_for_selector("text=there is no photograph")


@pytest.mark.end_to_end
def test_several_photographs(browser_page, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(6)]
    for i, file in enumerate(files):
        Image.fromarray(scene(i, "test").image).resize((640, 480)).save(file)
    browser_page.fill("#words textarea, #words input", "ladybird, heart, bricks")
    browser_page.click("button:has-text('several photographs')")
    browser_page.set_input_files("#several input[type=file]", [str(file) for file in files])
    browser_page.wait_for_selector("#several >> text=5")
    # the progress is there for a moment only
    browser_page.evaluate("""() => {
        window.progress = new Set();
        new MutationObserver(() => {
            const inner = document.querySelectorAll(".progress-level-inner");
            inner.forEach((element) => window.progress.add(element.textContent.trim()));
        }).observe(document.body, {subtree: true, childList: true, characterData: true});
    }""")
    browser_page.click("#segment-all")
    browser_page.wait_for_selector("#archive a", timeout=120_000)
    assert any("segment" in text for text in browser_page.evaluate("() => [...window.progress]"))
    assert browser_page.locator("#overlays img").count() >= 6
    with browser_page.expect_download() as download:
        browser_page.click("#archive a")
    names = zipfile.ZipFile(download.value.path()).namelist()
    assert sorted(names) == sorted(f"{i}_{kind}" for i in range(6) for kind in ("coco.json", "mask.png", "overlay.png"))
