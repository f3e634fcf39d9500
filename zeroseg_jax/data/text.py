"""Text in users' files: UTF-8 with or without a byte order mark, lines that end in a line feed, names of files."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zeroseg_jax.errors import InputError

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""They would break lines of lists, or do something to a terminal."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put first.

    Raises:
        InputError: the file is not there, cannot be read, or is in another encoding.
    """
    try:
        return decode_text(path.read_bytes())
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path} is not UTF-8 text (see its line {line}); save it again in UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); give a text file") from error


def decode_text(data: bytes) -> str:
    """UTF-8 without its byte order mark; raises UnicodeDecodeError for another encoding."""
    return data.decode("utf-8-sig")


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, stripped, with their numbers from 1.

    Only line feeds end a line: `str.splitlines` would also end one at characters such as U+2028, which JSON and names
    may hold.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line := line.strip():
            yield number, line


def read_json(path: Path, what: str) -> Any:
    """The value in a JSON file; raises InputError, which calls the file `what`, where it holds none."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no {what} ({error}); fetch it again") from error


def readable(name: str) -> str:
    r"""A file's name as text: bytes that are no UTF-8, which Python keeps as surrogates, and control characters become
    \xNN."""
    try:
        text = os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # other halves of surrogate pairs, which no file's name has
        text = name.encode("utf-8", "backslashreplace").decode()
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_text(value: str) -> bool:
    """Whether UTF-8 can write it: JSON may hold halves of surrogate pairs, which it cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
