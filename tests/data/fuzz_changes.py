"""For `fuzz.py`: changes of bytes and of JSON by chance, and what is common to all kinds of data."""

import copy
import io
import json
import random
from typing import Any

import numpy as np
from PIL import Image

from zeroseg_jax.data.decode import BrokenImage
from zeroseg_jax.errors import InputError

RUNS = r"\9:R9"
"""COCO's text for runs of 300, 10 and 290 pixels."""


STRANGE: tuple[Any, ...] = (
    *(None, True, 0, -1, 3.5, 10**9, -(10**30), float("nan"), float("inf"), "", "x", "a\u2028b", "\ud800", "\0"),
    *("../../x", "x" * 300, [], [[]], {}, [None], [1, 2], [[1, 2, 3, 4]], {"a": 1}, [[[1]]], "[1]", "é", "\n"),
)


def picture(ending: str = "PNG", mode: str = "RGB", level: int = 0, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(level).integers(0, 4, (9, 12), dtype=np.uint8)
    image = Image.fromarray(pixels if mode == "L" else 60 * pixels).convert(mode)
    image.save(buffer, ending, **options)
    return buffer.getvalue()


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes or pieces are replaced, removed, doubled or moved."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not result:
            break
        start = rng.randrange(len(result))
        piece = result[start : start + rng.choice((1, 2, 4, 16, 100, 512))]
        way = rng.randrange(6)
        if way == 0:
            result[start] = rng.randrange(256)
        elif way == 1:
            result[start] ^= 1 << rng.randrange(8)
        elif way == 2:
            del result[start : start + len(piece)]
        elif way == 3:
            result[start:start] = piece
        elif way == 4:
            result[start : start + len(piece)] = rng.choice((b"\0", b"\xff", b"0", b"7")) * len(piece)
        else:
            del result[start:]
    return bytes(result)


def change_value(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value in which one part is another, or is not there."""
    value = copy.deepcopy(value)
    place, key = None, None
    while isinstance(value if place is None else place[key], dict | list):
        inner = value if place is None else place[key]
        if not inner or (place is not None and rng.random() < 0.2):
            break
        place = inner
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
    if place is None:
        return rng.choice(STRANGE)
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(STRANGE)
    return value


def change_json(value: Any, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 3))):
        value = change_value(value, rng)
    text = json.dumps(value).encode()
    return change_bytes(text, rng) if rng.random() < 0.1 else text


def read_all(source: Any) -> list[Any]:
    """Everything in a source; BrokenImage for what is not readable."""
    result = []
    for i in range(len(source)):
        try:
            result.append((source.key(i), source.text(i), source[i]["image"].tobytes()))
        except BrokenImage as error:
            check_sentence(error)
            result.append(None)
    return result


def check_sentence(error: InputError) -> None:
    said = str(error)
    assert "\n" not in said and len(said) < 1000 and said.strip(), f"no sentence: {said[:300]!r}"
    said.encode()
