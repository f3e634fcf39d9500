"""A page on this machine: your photograph, your words.

    python -m zeroseg_jax.app --model openai/clip-vit-base-patch16

needs `pip install 'zeroseg_jax[app]'`. The page answers on this machine only, unless --host says otherwise, and loads
nothing from elsewhere. As a Space on the Hugging Face hub the same file is `app.py`, and the variable ZEROSEG_MODEL
names the model (docs/segmenting.md).
"""

import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path
from string import ascii_lowercase
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from zeroseg_jax import draw
from zeroseg_jax.command_line import make_parser
from zeroseg_jax.data.image_like import to_pixels
from zeroseg_jax.errors import InputError
from zeroseg_jax.segment import EncodedImage, Segmenter, SegmentResult, load
from zeroseg_jax.segment.formats.annotations import mean_scores

ENCODED = 8
"""Number of images that stay encoded, so that other words for them need no run of the model."""
SHOWN = 800
"""Longest side of the pictures on the page, in pixels. The files have all pixels of the photograph."""
GUIDE = 2.0
"""Radius of the guided filter, if it is on."""
DEMO = (
    ". It knows drawings of 18 things, such as *star*, *fish* and *grass*. For photographs, start with another --model."
)
"""What the page says about the demo."""
STYLE = "#labels .mask.active { opacity: 0.85 } #labels .mask.inactive { opacity: 0 }"
"""Only the region under the mouse stays coloured. Gradio fades it too while the mouse is over the picture."""
BACKGROUNDS = ("none", "threshold", "words")


class Page:
    """The model behind the page. The last images stay encoded."""

    def __init__(self, model: Segmenter):
        self.model = model
        self.readouts = model.method.readouts
        self._encoded: dict[tuple[str, str, int | None], EncodedImage] = {}
        self._lock = Lock()  # Gradio calls from several threads

    def segment(
        self,
        file: str | Path | None,
        words: str,
        readout: str,
        background: str,
        threshold: float,
        phrases: str,
        guide: bool,
        *,
        longest: int | None = None,
    ) -> SegmentResult:
        """Segments an image file. An image whose longer side has more than `longest` pixels is made smaller first.

        Raises InputError for an image or words that cannot be used.
        """
        if file is None:
            raise InputError("there is no photograph; drop one, or take one with the camera")
        chosen = {"none": None, "threshold": threshold, "words": split_words(phrases)}[background]
        with self._lock:
            encoded = self._encode(str(file), readout, longest)
            return encoded.segment(split_words(words), background=chosen, guide=GUIDE if guide else 0.0)

    def _encode(self, file: str, readout: str, longest: int | None) -> EncodedImage:
        key = file, readout, longest  # a name is enough: Gradio names uploaded files by their content
        if key not in self._encoded:
            pixels = shrink(to_pixels(file), longest)
            self._encoded[key] = self.model.encode(pixels, **({"readout": readout} if readout else {}))
            while len(self._encoded) > ENCODED:
                self._encoded.pop(next(iter(self._encoded)))
        return self._encoded[key]


def shrink(pixels: np.ndarray, longest: int | None) -> np.ndarray:
    """The image with at most `longest` pixels on its longer side."""
    if longest is None or max(pixels.shape[:2]) <= longest:
        return pixels
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(image)


def split_words(text: str) -> list[str]:
    """The words between commas or line ends."""
    return [word.strip() for word in text.replace("\n", ",").split(",") if word.strip()]


def annotations(result: SegmentResult) -> tuple[list[tuple[Any, str]], dict[str, str]]:
    """The regions of the labels in the image, with their names, and the colours of the names.

    A name is the label with its share of the image and its mean score there. The colours are those of the overlay.
    """
    regions: list[tuple[Any, str]] = []
    colours: dict[str, str] = {}
    areas, scores, palette = result.areas(), mean_scores(result), draw.palette(len(result.labels))
    for index, label in enumerate(result.labels):
        region = result.label_map == index
        if region.any():
            # the left-to-right mark keeps the numbers out of a word that runs from right to left
            name = f"{label}  \u200e{areas[label]:.0%}, score {scores[index]:.2f}"
            regions.append((region, name))
            colours[name] = "#{:02x}{:02x}{:02x}".format(*palette[index])
    return regions, colours


def write_files(result: SegmentResult, folder: Path) -> list[str]:
    """Writes the overlay, the mask and COCO's annotations; returns their paths."""
    paths = [folder / "overlay.png", folder / "mask.png", folder / "coco.json"]
    result.save(paths[0])
    result.save_mask(paths[1])
    paths[2].write_text(json.dumps(result.to_coco(), indent=1) + "\n", encoding="utf-8")
    return [str(path) for path in paths]


def make_page(model: Segmenter, title: str) -> Any:
    """The page as Gradio's `Blocks`. Raises InputError without Gradio."""
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise InputError("the page needs Gradio; pip install 'zeroseg_jax[app]'") from error
    page = Page(model)

    def answer(file: str | None, *inputs: Any, longest: int | None = None) -> SegmentResult:
        """Segments one photograph. The page shows an error for bad input.

        The error names the file without the folder that Gradio put it in.
        """
        try:
            return page.segment(file, *inputs, longest=longest)
        except InputError as error:
            message = str(error) if file is None else str(error).replace(f"{Path(file).parent}{os.sep}", "")
            raise gr.Error(message, print_exception=False) from error

    def show(*inputs: Any) -> tuple[Any, np.ndarray]:
        """The pictures of one photograph."""
        result = answer(*inputs, longest=SHOWN)
        regions, colours = annotations(result)
        annotated = gr.AnnotatedImage(value=(result.image, regions), color_map=colours)
        return annotated, draw.paint_segments(result.image, result.segments)

    def write(*inputs: Any) -> list[str]:
        """The files of one photograph, at its full size."""
        return write_files(answer(*inputs), Path(tempfile.mkdtemp(prefix="zeroseg-")))

    def segment_all(files: Sequence[str] | None, *inputs: Any, progress: Any = gr.Progress()) -> tuple[Any, str]:  # noqa: B008
        """The overlays of several photographs, and an archive of all files."""
        if not files:
            raise gr.Error("there are no photographs; choose some first", print_exception=False)
        folder = Path(tempfile.mkdtemp(prefix="zeroseg-"))
        pictures, archive = [], folder / "segmented.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for i, file in enumerate(progress.tqdm(files, desc="segment")):
                place = folder / str(i)
                place.mkdir()
                paths = write_files(answer(file, *inputs), place)
                for path in paths:
                    packed.write(path, f"{Path(file).stem}_{Path(path).name}")
                pictures.append((paths[0], Path(file).name))
        return pictures, str(archive)

    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.Markdown(f"# Your photograph, your words\nModel: `{title}`{DEMO if title == 'demo' else ''}")
        with gr.Row():
            with gr.Column():
                sources: Any = ["upload", "webcam", "clipboard"]
                image = gr.Image(label="photograph", type="filepath", sources=sources)
                # the file as it was uploaded: Gradio would open it here, and fail without a sentence if it cannot.
                # This is no subclass, because Gradio writes a .pyi file beside the source of each
                image.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
                words = gr.Textbox(label="words, with commas between", value="cat, grass, the sky", elem_id="words")
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                with gr.Accordion("options", open=False):
                    readout = gr.Dropdown(
                        [("the model's own", ""), *page.readouts],
                        value="",
                        label="readout",
                        visible=bool(page.readouts),
                        elem_id="readout",
                    )
                    guide = gr.Checkbox(True, label="follow the edges of the image (guided filter)", elem_id="guide")
                    background = gr.Radio(list(BACKGROUNDS), value="none", label="background", elem_id="background")
                    threshold = gr.Slider(
                        0.05, 0.95, 0.5, step=0.05, label="threshold of the background", elem_id="threshold"
                    )
                    phrases = gr.Textbox("background", label="words for the background", elem_id="phrases")
            with gr.Column():
                with gr.Tab("labels"):
                    labels = gr.AnnotatedImage(label="labels", elem_id="labels", format="jpeg")
                parts = "patches" if page.readouts else "segments"  # a CLIP has no segments of its own
                with gr.Tab(parts):
                    buttons: Any = ["download", "fullscreen"]  # without the one that shares on the hub
                    label = f"{parts}, in the image's colours"
                    segments = gr.Image(label=label, elem_id="segments", buttons=buttons, format="jpeg")
                make_files = gr.Button("Make the files", elem_id="make-files")
                files = gr.Files(label="overlay, mask, COCO annotations", elem_id="files")
        with gr.Accordion("several photographs", open=False):
            several = gr.Files(label="photographs", file_types=["image"], elem_id="several")
            all_of_them = gr.Button("Segment all", elem_id="segment-all")
            pictures = gr.Gallery(label="overlays", elem_id="overlays")
            archive = gr.File(label="all files", elem_id="archive")
        options = [words, readout, background, threshold, phrases, guide]
        for event in (button.click, words.submit):
            # without the files of the last answer
            event(show, [image, *options], [labels, segments]).success(lambda: None, outputs=files)
        # files of the full size take longer than the pictures, so they are made when they are asked for
        make_files.click(write, [image, *options], files)
        all_of_them.click(segment_all, [several, *options], [pictures, archive])
    return blocks


def compile_first(model: Segmenter) -> None:
    """Compiles what most photographs and lists of words need, so that the answers do not wait for the compiler.

    Upright and lying photographs share most functions, and so do lists of up to 8 or 16 words. The text encoder is
    compiled for batches of 1, 4 and 16 texts of two lengths.
    """
    for shape in ((480, 640), (480, 480)):
        encoded = model.encode(np.zeros((*shape, 3), np.uint8))
        for count in (1, 4, 12):
            for prefix in ("", "the "):
                encoded.segment([prefix + letter for letter in ascii_lowercase[:count]], guide=GUIDE)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("python -m zeroseg_jax.app", __doc__)
    parser.add_argument("--model", default=os.environ.get("ZEROSEG_MODEL", "demo"), help="what zeroseg_jax.load takes")
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    parser.add_argument(
        "--host", default=host, help="0.0.0.0 lets other machines in (GRADIO_SERVER_NAME, or 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=port, help="(GRADIO_SERVER_PORT, or 7860)")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        model = load(arguments.model)
        page = make_page(model, arguments.model)
        print("compiling the model, so that the first answers come at once ...", flush=True)
        compile_first(model)
        import gradio as gr

        page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            # fonts of this machine: those of Gradio's own theme come from Google
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            js=package_files("zeroseg_jax").joinpath("assets/page/hover.js").read_text("utf-8"),
            css=STYLE,
            share=False,
            footer_links=[],
        )
    except (InputError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
