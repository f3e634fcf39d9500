"""Segments images and folders of images by words, from the command line.

    python -m zeroseg_jax.segment IMAGE_OR_FOLDER ... --model DIR --labels "cat,grass,the sky" --out DIR [--json]

For each image it writes NAME_overlay.png and NAME_mask.png (pixel values index the labels, 255 is background) into
--out;
--json adds segments.json with areas and COCO annotations. An unreadable file is left out, named at the end, and makes
the exit status 1; a command that cannot start ends with one sentence and exit status 2.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from zeroseg_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse, with one sentence for bad usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; see python -m zeroseg_jax.segment --help\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__
    parser = Parser(
        prog="python -m zeroseg_jax.segment",
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n", 2)[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE_OR_FOLDER", help="folders are searched with all that is below"
    )
    parser.add_argument("--model", required=True, help="a workdir, an exported model, a CLIP's folder or a hub id")
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--labels", help='the labels, with commas between: "cat,grass,the sky"')
    words.add_argument("--labels-file", type=Path, help="a text file with one label on each line")
    parser.add_argument("--out", required=True, type=Path, help="folder for what is written")
    parser.add_argument("--json", action="store_true", help="also write segments.json")
    parser.add_argument("--templates", help='"name", "photo", "clip7", or a template of your own: "a drawing of a {}"')
    parser.add_argument("--background", help="a threshold such as 0.5, or phrases with commas between, for no label")
    parser.add_argument("--batch", type=int, default=16, help="images in memory at once (16)")
    return parser.parse_args(argv)


def read_labels(arguments: argparse.Namespace) -> list[str]:
    if arguments.labels is not None:
        return [label.strip() for label in arguments.labels.split(",")]
    try:
        text = arguments.labels_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the labels cannot be read from {arguments.labels_file} ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def parse_background(text: str | None) -> float | list[str] | None:
    """A number is a threshold, everything else are phrases."""
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return [phrase.strip() for phrase in text.split(",")]


def find_images(sources: Sequence[str]) -> list[tuple[Path, str]]:
    """Every file with the name that its outputs get: its path below the folder that was given, without the ending."""
    from zeroseg_jax.data.folder import FolderSource

    found: list[tuple[Path, str]] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            folder = FolderSource(path, "all")
            found += [(path / folder.key(i), folder.key(i)) for i in range(len(folder))]
        elif path.exists():
            found.append((path, path.name))
        else:
            raise InputError(f"there is no image or folder {source}")
    names = [str(Path(name).with_suffix("")) for _, name in found]
    # where two would collide the ending, and if need be a number, tells them apart
    for i, (path, _) in enumerate(found):
        if names.count(names[i]) > 1:
            names[i] = f"{names[i]}_{path.suffix.lstrip('.')}"
        if names[i] in names[:i]:
            names[i] = f"{names[i]}_{i}"
    return [(path, name) for (path, _), name in zip(found, names, strict=True)]


def run(arguments: argparse.Namespace) -> int:
    """Does it; returns the exit status."""
    labels, background, files = (
        read_labels(arguments),
        parse_background(arguments.background),
        find_images(arguments.images),
    )
    if arguments.batch < 1:
        raise InputError(f"--batch is {arguments.batch}; it must be at least 1")
    arguments.out.mkdir(parents=True, exist_ok=True)
    from zeroseg_jax.log import ProgressBar
    from zeroseg_jax.segment import load

    model = load(arguments.model)
    model.embed_labels(labels, arguments.templates)  # bad labels are found before the first image is read
    written: list[dict[str, Any]] = []
    failed: list[str] = []
    bar = ProgressBar("segment", len(files))
    for done, part in read_batches(files, arguments.batch, failed):
        options = dict(templates=arguments.templates, background=background)
        results = model.segment_batch([pixels for _, _, pixels in part], labels, **options) if part else []
        for (path, name, _), result in zip(part, results, strict=True):
            result.save(arguments.out / f"{name}_overlay.png")
            result.save_mask(arguments.out / f"{name}_mask.png")
            height, width = result.label_map.shape
            entry = {"file": str(path), "width": width, "height": height, "overlay": f"{name}_overlay.png"}
            annotations = result.to_coco(image_id=len(written))
            written.append(entry | {"mask": f"{name}_mask.png", "areas": result.areas(), "annotations": annotations})
        bar.update(done)
    bar.close()
    if arguments.json:
        content = {"model": arguments.model, "labels": labels, "images": written, "failed": failed}
        (arguments.out / "segments.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{len(written)} of {len(files)} images segmented into {arguments.out}")
    for sentence in failed:
        print(sentence, file=sys.stderr)
    return 1 if failed else 0


def read_batches(
    files: Sequence[tuple[Path, str]], size: int, failed: list[str]
) -> Iterator[tuple[int, list[tuple[Path, str, Any]]]]:
    """How many files are done with, and those of them that can be read; what is wrong with the others goes to
    `failed`."""
    from zeroseg_jax.segment.images import to_pixels

    for start in range(0, len(files), size):
        part = []
        for path, name in files[start : start + size]:
            try:
                part.append((path, name, to_pixels(path)))
            except InputError as error:
                failed.append(str(error))
        yield min(start + size, len(files)), part


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        return run(arguments)
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
