"""Lists of the images of a split, one on each line, as VOC's ImageSets have them."""

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from zeroseg_jax.data.text import numbered_lines, read_text
from zeroseg_jax.errors import InputError


def read_split_list(path: Path, known: Collection[str]) -> list[str]:
    """The names that a list holds, in its order.

    A line is the name of an image, with or without its folder and ending; more columns may stand behind it and are not
    read. As a name may have spaces, it is the longest beginning of the line that is in `known`, the names of the images
    that are there, without their endings. A name that is not among them is returned as well.

    Raises:
        InputError: the list cannot be read, is not in UTF-8, or holds a name twice.
    """
    lines: dict[str, int] = {}
    for number, line in numbered_lines(read_text(path)):
        name = _name(line, known)
        if name in lines:
            raise InputError(f"{path} has {name!r} in line {lines[name]} and again in line {number}; remove one")
        lines[name] = number
    return list(lines)


def _name(line: str, known: Collection[str]) -> str:
    for end in [len(line), *reversed([gap.start() for gap in re.finditer(r"\s+", line)])]:
        path = PurePosixPath(line[:end])
        for name in (line[:end], path.name, path.stem):
            if name in known:
                return name
    columns = line.split()
    # not there: the first column, unless the others look like parts of a name
    rest = all(column.lstrip("+-").isdigit() or "/" in column or "." in column for column in columns[1:])
    return PurePosixPath(columns[0] if rest else line).name
