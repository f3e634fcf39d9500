"""Reads text files of users, and makes file names safe to print."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from zeroseg_jax.errors import InputError
from zeroseg_jax.storage import AnyPath

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters and line separators. They would break a list of lines, or change the state of a terminal."""


def read_text(path: AnyPath) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors write.

    Raises:
        InputError: the file is missing, cannot be read, or has another encoding.
    """
    try:
        return decode_text(path.read_bytes())
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path} is not UTF-8 text (see its line {line}); save it again in UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: the path has a null byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); give a text file") from error


def decode_text(data: bytes) -> str:
    """Decodes UTF-8 and drops the byte order mark. Raises UnicodeDecodeError for another encoding."""
    return data.decode("utf-8-sig")


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, stripped, with their line numbers from 1.

    Only a line feed ends a line. `str.splitlines` also splits at characters such as U+2028, which JSON and names may
    contain.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line := line.strip():
            yield number, line


def read_json(path: AnyPath, what: str) -> Any:
    """The value in a JSON file. Raises InputError if the file is not JSON; the message calls the file `what`."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a {what} ({error}); fetch it again") from error


def readable(name: str) -> str:
    r"""The name of a file as printable text. Bytes that are not UTF-8 (surrogates in Python) and control characters
    become \xNN."""
    try:
        text = os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that do not come from a file name
        text = name.encode("utf-8", "backslashreplace").decode()
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_text(value: str) -> bool:
    """Whether UTF-8 can encode `value`. It cannot encode single surrogates, which JSON may contain."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
