"""The chips that `launch/fit.py` knows: memory and peak rates, each from its maker's data sheet."""

import math
import re
from typing import NamedTuple

from zeroseg_jax.errors import InputError


class Chip(NamedTuple):
    """One chip. Rates are peaks that no program reaches; `network` is all links of a chip together, one way."""

    memory: float  # bytes that a program may use
    flops: float  # bfloat16 FLOP/s
    bandwidth: float  # bytes/s of the chip's main memory
    network: float  # bytes/s


# Source: cloud.google.com/tpu/docs/{v5e,v5p,v6e}. Memory of v5e and v6e is what their compiler grants.
# The data sheets give the links of a chip in both directions together; half of that is one way.
CHIPS = {
    "v5e": Chip(15.75 * 2**30, 197e12, 819e9, 100e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 300e9),
    "v6e": Chip(31.24 * 2**30, 918e12, 1640e9, 224e9),
}


def parse_topology(name: str) -> tuple[str, Chip, int]:
    """ "v5e:4x4" -> ("v5e", its row, 16); raises InputError for what is no topology of 4 to 256 chips."""
    kind, _, shape = name.partition(":")
    chips = math.prod(int(n) for n in shape.split("x")) if re.fullmatch(r"\d+(x\d+){1,2}", shape) else 0
    axes = 3 if kind == "v5p" else 2
    if kind not in CHIPS or not 4 <= chips <= 256 or shape.count("x") + 1 != axes:
        raise InputError(
            f"--topology={name} is no topology of 4 to 256 chips; valid ones are such as v5e:4x4, v6e:8x8 and v5p:2x2x4"
        )
    return kind, CHIPS[kind], chips
