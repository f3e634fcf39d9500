"""Segments images and folders of images by words, from the command line.

    python -m zeroseg_jax.segment IMAGE_OR_FOLDER ... --model DIR --labels "cat,grass,the sky" --out DIR [--json]

Into --out go NAME_overlay.png and NAME_mask.png of each image, and segments.json with the areas and COCO annotations of
all of them. --format yolo, voc, coco or labelstudio writes what these tools read. Pixel values of a mask index the
labels, and 255 is background; with more than 255 labels a mask has 16 bits, and 65535 is background.

An unreadable file is left out, named at the end, and makes the exit status 1. Files that
are no images, and what an earlier run wrote, are left out and counted at the end. A command that cannot start ends with
one sentence and exit status 2.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from zeroseg_jax.command_line import make_parser
from zeroseg_jax.data.text import numbered_lines, read_text
from zeroseg_jax.errors import InputError
from zeroseg_jax.progress import ProgressBar
from zeroseg_jax.resources import explained_exhaustion
from zeroseg_jax.segment.formats.geotiff import segment_geotiff
from zeroseg_jax.segment.formats.video import (
    STEADY,
    VIDEOS,
    VideoWriter,
    draw_frame,
    frame_rate,
    read_video,
    segment_frames,
)
from zeroseg_jax.segment.formats.writer import FORMATS, Writer, read_formats
from zeroseg_jax.segment.input_files import Files, find_images, read_batches
from zeroseg_jax.segment.io import load
from zeroseg_jax.segment.options import FIELDS, Flag, description, from_text
from zeroseg_jax.segment.prompts import TEMPLATES, parse_background
from zeroseg_jax.segment.result import check_count
from zeroseg_jax.segment.segmenter import Segmenter
from zeroseg_jax.storage import disk_path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m zeroseg_jax.segment", __doc__)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE_OR_FOLDER", help="folders are searched with all that is below"
    )
    parser.add_argument("--model", required=True, help="a workdir, an exported model, a CLIP's folder or a hub id")
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--labels", help='the labels, with commas between: "cat,grass,the sky"')
    words.add_argument("--labels-file", type=Path, help="a text file with one label on each line")
    parser.add_argument("--out", required=True, type=Path, help="folder for what is written")
    parser.add_argument(
        "--json", action="store_true", help="print what segments.json holds on stdout, and nothing else"
    )
    parser.add_argument(
        "--format",
        default="png",
        metavar="NAME,...",
        help="what is written, with commas between (png): " + "; ".join(f"{name}: {x}" for name, x in FORMATS.items()),
    )
    parser.add_argument("--no-overlay", action="store_true", help="write masks and segments.json only, which is faster")
    parser.add_argument("--templates", help=f'{", ".join(TEMPLATES)}, or a template of your own: "a drawing of a {{}}"')
    parser.add_argument("--background", help="a threshold such as 0.5, or phrases with commas between, for no label")
    parser.add_argument(
        "--steady",
        type=int,
        metavar="N",
        help="the images of each folder are frames of a video, and labels come from the mean of the scores of the last"
        f" N frames; for video files {STEADY} unless given, and 1 labels every frame by itself",
    )
    parser.add_argument("--batch", type=int, default=16, help="images in memory at once (16)")
    add_options(parser)
    return parser.parse_args(argv)


def add_options(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of `Options`. Without one the model's own default counts."""
    group = parser.add_argument_group("options of inference", "the model's own defaults count where nothing is given")
    for name, field in FIELDS.items():
        check, flag = field.metadata["check"], f"--{name.replace('_', '-')}"
        text = f"{description(name)} [{check}]".replace("%", "%%").replace("`", "")
        if isinstance(check, Flag):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(flag, metavar="VALUE", help=text)


def read_labels(arguments: argparse.Namespace) -> list[str]:
    if arguments.labels is not None:
        return [label.strip() for label in arguments.labels.split(",")]
    return [label for _, label in numbered_lines(read_text(arguments.labels_file.expanduser()))]


def read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The templates, the background, and the options of inference that were given."""
    values = {name: getattr(arguments, name) for name in FIELDS if getattr(arguments, name) is not None}
    options = {name: from_text(name, value) if isinstance(value, str) else value for name, value in values.items()}
    return options | {"templates": arguments.templates, "background": parse_background(arguments.background)}


def run(arguments: argparse.Namespace) -> int:
    """Does it; returns the exit status."""
    labels, options, formats = read_labels(arguments), read_options(arguments), read_formats(arguments.format)
    files, left_out = find_images(arguments.images)
    arguments.out = disk_path(arguments.out)
    if arguments.batch < 1:
        raise InputError(f"--batch is {arguments.batch}; it must be at least 1")
    if arguments.steady is not None and arguments.steady < 1:
        raise InputError(f"--steady is {arguments.steady}; it must be at least 1")
    check_count(len(labels))
    make_folder(arguments.out)
    model = load(arguments.model)
    model.check(labels, **options)  # before the first image is read
    writer = Writer(arguments.out, labels, formats, overlays=not arguments.no_overlay)
    failed: list[str] = []
    if "geotiff" in formats:
        segment_rasters(model, files, writer, options, failed)
    else:
        images = [(path, name) for path, name in files if path.suffix.lower() not in VIDEOS]
        if arguments.steady:
            segment_sequences(model, images, writer, options, arguments.steady, failed)
        elif images:
            segment_images(model, images, writer, options, arguments.batch, failed)
        for path, name in files:
            if path.suffix.lower() in VIDEOS:
                segment_video(model, path, name, writer, options, arguments.steady or STEADY, failed)
    writer.close()
    content = {
        "model": arguments.model,
        "labels": labels,
        "images": writer.images,
        "failed": failed,
        "left_out": left_out,
    }
    text = json.dumps(content, indent=1)
    (arguments.out / "segments.json").write_text(text + "\n", encoding="utf-8")
    print(
        text if arguments.json else f"{len(files) - len(failed)} of {len(files)} images segmented into {arguments.out}"
    )
    for sentence in (*left_out, *failed):
        print(sentence, file=sys.stderr)
    return 1 if failed else 0


def segment_images(
    model: Segmenter, files: Files, writer: Writer, options: dict[str, Any], batch: int, failed: list[str]
) -> None:
    bar = ProgressBar("segment", len(files))
    for done, part in read_batches(files, batch, failed):
        results = model.segment_batch([pixels for _, _, pixels in part], writer.labels, **options) if part else []
        for (path, name, _), result in zip(part, results, strict=True):
            writer.add(result, path, name)
        bar.update(done)
    bar.close()


def segment_sequences(
    model: Segmenter, files: Files, writer: Writer, options: dict[str, Any], steady: int, failed: list[str]
) -> None:
    """The images of each folder are the frames of a video, in the order of their names."""
    bar = ProgressBar("segment", len(files))
    for _, group in groupby(files, key=lambda file: file[0].parent):
        read: list[tuple[Path, str]] = []  # the frames that can be read

        def frames(group: Files, read: list[tuple[Path, str]]) -> Iterator[Any]:
            for _, part in read_batches(group, 1, failed):
                bar.update(len(writer.images) + len(failed))
                for path, name, pixels in part:
                    read.append((path, name))
                    yield pixels

        results = segment_frames(model, frames(list(group), read), writer.labels, steady=steady, **options)
        for result in results:
            writer.add(result, *read[-1])
    bar.update(len(files))
    bar.close()


def segment_video(
    model: Segmenter,
    path: Path,
    name: str,
    writer: Writer,
    options: dict[str, Any],
    steady: int,
    failed: list[str],
) -> None:
    """Writes NAME_overlay.mp4, and the other files of each frame into the folder NAME."""
    try:
        rate = frame_rate(path)
        video = VideoWriter(writer.folder / f"{name}_overlay.mp4", rate) if writer.overlays else None
        frames = segment_frames(model, read_video(path), writer.labels, steady=steady, **options)
        overlays, writer.overlays = writer.overlays, False  # the video has them
        try:
            for i, result in enumerate(frames):
                writer.add(result, path, f"{name}/{i:06d}")
                if video:
                    video.add(draw_frame(result))
                if i % 100 == 99:
                    print(f"segment {name}: {i + 1} frames", file=sys.stderr)
        finally:
            writer.overlays = overlays
            if video:
                video.close()
    except InputError as error:
        failed.append(str(error))


def segment_rasters(model: Segmenter, files: Files, writer: Writer, options: dict[str, Any], failed: list[str]) -> None:
    """Window by window. The progress counts windows."""
    for path, name in files:
        bar: ProgressBar | None = None

        def report(done: int, total: int) -> None:
            nonlocal bar
            bar = bar or ProgressBar(f"segment {name}", total)  # noqa: B023 (it is called in this round)
            bar.update(done)

        target = writer.folder / f"{name}.tif"
        try:
            segment_geotiff(model, path, target, writer.labels, report=report, **options)
            writer.images.append({"file": str(path), "geotiff": f"{name}.tif"})
        except InputError as error:
            failed.append(str(error))
        if bar:
            bar.close()


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out={folder} cannot be made ({error.strerror}); give another folder") from error


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        with explained_exhaustion(mode="segment"):
            return run(arguments)
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
