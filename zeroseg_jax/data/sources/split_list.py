"""Lists of the images of a split, one on each line, as VOC's ImageSets have them."""

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from zeroseg_jax.data.text import numbered_lines, read_text
from zeroseg_jax.errors import InputError


def read_split_list(path: Path, known: Collection[str]) -> list[str]:
    """The names in a list of a split, in its order.

    A line has the name of an image, with or without its folder and ending. More columns may follow; they are not read.
    A name may have spaces. So the name is the longest beginning of the line that is in `known`, the names of the
    existing images without their endings. A name that is not in `known` is returned too.

    Raises:
        InputError: the list cannot be read, is not in UTF-8, or has a name twice.
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
