"""The image files that the command line segments: which they are, and the names of what is written for them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from zeroseg_jax.data.image_like import to_pixels
from zeroseg_jax.data.sources.folder import OTHER_IMAGES, FolderSource
from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.formats.video import VIDEOS
from zeroseg_jax.segment.result import is_output

Files = Sequence[tuple[Path, str]]
"""Images, each with its name in the output, without an ending."""
OUTPUTS = ("_mask", "_overlay")
"""What the names of the pictures that are written end in."""


def find_images(sources: Sequence[str]) -> tuple[list[tuple[Path, str]], list[str]]:
    """Finds the images in files and folders. Returns them with their names, and messages about what is left out.

    A name is the path below the folder, without the ending. Files of a folder that are no images are left out, and so
    are pictures that an earlier run of this command wrote. Such a picture is segmented if the user names the file and
    its name does not end in one of OUTPUTS.
    """
    images: dict[Path, tuple[Path, str]] = {}  # by the real path, because a file may be given twice
    others: Counter[str] = Counter()
    outputs = 0
    for source in sources:
        path = Path(source).expanduser()
        in_folder = path.is_dir()
        if in_folder:
            folder = FolderSource(path, "all")
            others += folder.others
            files = [(folder.path(i), folder.key(i)) for i in range(len(folder))]
        elif path.exists():
            files = [(path, path.name)]
        else:
            raise InputError(f"there is no image or folder {source}")
        for file, name in files:
            output = file.suffix == ".png" and (in_folder or file.stem.endswith(OUTPUTS))
            if output and is_output(file):
                outputs += 1
            else:
                images.setdefault(file.resolve(), (file, name))
    if not images:
        raise InputError(f"{', '.join(sources)} holds only files that this command wrote; give the images")
    return name_outputs(list(images.values())), describe_left_out(others, outputs)


def name_outputs(files: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """The name of each file without its ending; where two would be the same, the ending tells them apart, and if need
    be a number. Names that differ in capitals only are the same on many disks."""
    stems = [str(Path(name).with_suffix("")) for _, name in files]
    counts = Counter(stem.casefold() for stem in stems)
    taken = {stem for stem, count in counts.items() if count == 1}
    named = []
    for (path, _), stem in zip(files, stems, strict=True):
        name = stem
        if counts[stem.casefold()] > 1:
            longer = f"{stem}_{path.suffix.lstrip('.')}"
            tries = (longer if i == 1 else f"{longer}_{i}" for i in count(1))
            name = next(name for name in tries if name.casefold() not in taken)
            taken.add(name.casefold())
        named.append((path, name))
    return named


def describe_left_out(others: Counter[str], outputs: int) -> list[str]:
    """Sentences about the files that are left out."""

    def files(number: int) -> str:
        return "1 file" if number == 1 else f"{number} files"

    said = [f"left out: {files(outputs)} that an earlier run of this command wrote"] if outputs else []
    unread = {ending: number for ending, number in others.items() if ending in OTHER_IMAGES}
    videos = {ending: number for ending, number in others.items() if ending in VIDEOS}
    rest = sum(others.values()) - sum((unread | videos).values())
    if unread:
        endings = ", ".join(f"{number} x {ending}" for ending, number in sorted(unread.items()))
        said.append(f"left out: images of formats that are not read here ({endings}); convert them to JPEG or PNG")
    if videos:
        said.append(f"left out: {files(sum(videos.values()))} of video; give the path of each video, not of its folder")
    if rest:
        kinds = ", ".join(sorted({ending or "no ending" for ending in others} - set(unread) - set(videos)))
        said.append(f"left out: {files(rest)} that {'is' if rest == 1 else 'are'} no image ({kinds})")
    return said


def read_batches(
    files: Sequence[tuple[Path, str]], size: int, failed: list[str]
) -> Iterator[tuple[int, list[tuple[Path, str, Any]]]]:
    """How many files are done with, and those of them that can be read; what is wrong with the others goes to
    `failed`."""
    for start in range(0, len(files), size):
        part = []
        for path, name in files[start : start + size]:
            try:
                part.append((path, name, to_pixels(path)))
            except InputError as error:
                failed.append(str(error))
        yield min(start + size, len(files)), part
