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
from pathlib import Path
from typing import Any

import numpy as np

from zeroseg_jax import draw
from zeroseg_jax.command_line import make_parser
from zeroseg_jax.data.image_like import to_pixels
from zeroseg_jax.errors import InputError
from zeroseg_jax.segment import EncodedImage, Segmenter, SegmentResult, load
from zeroseg_jax.segment.formats.annotations import mean_scores

ENCODED = 4
"""Images that stay encoded: other words for them cost no pass of the model."""
DEMO = (
    ". It knows drawings of 18 things, such as *star*, *fish* and *grass*. For photographs, start with another --model."
)
"""What the page says about the demo."""
BACKGROUNDS = ("none", "threshold", "words")


class Page:
    """What the page asks of a model. Images that were seen last stay encoded."""

    def __init__(self, model: Segmenter):
        self.model = model
        self.readouts = model.method.readouts
        self._encoded: dict[Any, EncodedImage] = {}

    def encode(self, pixels: np.ndarray, readout: str) -> EncodedImage:
        key = pixels.shape, pixels.tobytes(), readout
        if key not in self._encoded:
            options = {"readout": readout} if readout else {}
            self._encoded[key] = self.model.encode(pixels, **options)
            while len(self._encoded) > ENCODED:
                self._encoded.pop(next(iter(self._encoded)))
        return self._encoded[key]

    def segment(
        self, image: Any, words: str, readout: str, background: str, threshold: float, phrases: str, guide: bool
    ) -> SegmentResult:
        """Raises InputError for an image or words that cannot be used."""
        if image is None:
            raise InputError("there is no photograph; drop one, or take one with the camera")
        chosen = {"none": None, "threshold": threshold, "words": split_words(phrases)}[background]
        encoded = self.encode(to_pixels(image), readout)
        return encoded.segment(split_words(words), background=chosen, guide=2.0 if guide else 0.0)


def split_words(text: str) -> list[str]:
    """The words between commas or on lines of their own."""
    return [word.strip() for word in text.replace("\n", ",").split(",") if word.strip()]


def annotations(result: SegmentResult) -> list[tuple[Any, str]]:
    """For the picture with names under the mouse: the region of each label that is there, and the label with its share
    of the image and the mean of its scores there."""
    names: list[tuple[Any, str]] = []
    areas, scores = result.areas(), mean_scores(result)
    for index, label in enumerate(result.labels):
        region = result.label_map == index
        if region.any():
            # the left-to-right mark keeps the numbers out of a word that runs from right to left
            names.append((region, f"{label}  \u200e{areas[label]:.0%}, score {scores[index]:.2f}"))
    return names


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

    def answer(*inputs: Any) -> tuple[Any, Any, list[str]]:
        try:
            result = page.segment(*inputs)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error
        names = annotations(result)
        colours = {
            name: "#{:02x}{:02x}{:02x}".format(*colour)
            for (_, name), colour in zip(names, draw.palette(len(names)), strict=True)
        }
        folder = Path(tempfile.mkdtemp(prefix="zeroseg-"))
        annotated = gr.AnnotatedImage(value=(result.image, names), color_map=colours)
        return annotated, draw.paint_segments(result.image, result.segments), write_files(result, folder)

    def answer_folder(files: Sequence[str] | None, *inputs: Any, progress: Any = gr.Progress()) -> tuple[Any, str]:  # noqa: B008
        if not files:
            raise gr.Error("there are no photographs; choose some first", print_exception=False)
        folder = Path(tempfile.mkdtemp(prefix="zeroseg-"))
        pictures, archive = [], folder / "segmented.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for i, file in enumerate(progress.tqdm(files, desc="segment")):
                try:
                    result = page.segment(file, *inputs)
                except InputError as error:
                    raise gr.Error(f"{Path(file).name}: {error}", print_exception=False) from error
                place = folder / str(i)
                place.mkdir()
                for path in write_files(result, place):
                    packed.write(path, f"{Path(file).stem}_{Path(path).name}")
                pictures.append((result.overlay(), Path(file).name))
        return pictures, str(archive)

    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.Markdown(f"# Your photograph, your words\nModel: `{title}`{DEMO if title == 'demo' else ''}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(label="photograph", type="pil", sources=["upload", "webcam", "clipboard"])
                words = gr.Textbox(label="words, with commas between", value="cat, grass, the sky", elem_id="words")
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                with gr.Accordion("options", open=False):
                    readout = gr.Dropdown(
                        [("the model's own", ""), *page.readouts],
                        value="",
                        label="readout",
                        visible=bool(page.readouts),
                    )
                    guide = gr.Checkbox(True, label="follow the edges of the image (guided filter)")
                    background = gr.Radio(list(BACKGROUNDS), value="none", label="background")
                    threshold = gr.Slider(0.05, 0.95, 0.5, step=0.05, label="threshold of the background")
                    phrases = gr.Textbox("background", label="words for the background")
            with gr.Column():
                with gr.Tab("labels"):
                    labels = gr.AnnotatedImage(label="labels", elem_id="labels")
                parts = "patches" if page.readouts else "segments"  # a CLIP has no segments of its own
                with gr.Tab(parts):
                    buttons: Any = ["download", "fullscreen"]  # without the one that shares on the hub
                    label = f"{parts}, in the image's colours"
                    segments = gr.Image(label=label, elem_id="segments", buttons=buttons)
                files = gr.Files(label="overlay, mask, COCO annotations", elem_id="files")
        with gr.Accordion("several photographs", open=False):
            several = gr.Files(label="photographs", file_types=["image"])
            all_of_them = gr.Button("Segment all")
            pictures, archive = gr.Gallery(label="overlays"), gr.File(label="all files")
        options = [words, readout, background, threshold, phrases, guide]
        for event in (button.click, words.submit):
            event(answer, [image, *options], [labels, segments, files])
        all_of_them.click(answer_folder, [several, *options], [pictures, archive])
    return blocks


def compile_first(model: Segmenter) -> None:
    """Segments an empty image of a usual size, so that the first photograph does not wait for the compiler."""
    model.segment(np.zeros((480, 640, 3), np.uint8), ["a", "b"])


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
        compile_first(model)
        import gradio as gr

        # fonts of this machine: those of Gradio's own theme come from Google
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        page.launch(server_name=arguments.host, server_port=arguments.port, theme=theme, share=False, footer_links=[])
    except (InputError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
