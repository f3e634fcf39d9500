"""Memory and peak rates of some accelerators, from their makers' data sheets."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip. The rates are peaks, which no real program reaches."""

    memory: float
    """Bytes that a program may use."""
    flops: float
    """bfloat16 FLOP/s."""
    bandwidth: float
    """Bytes/s of the chip's main memory."""
    network: float
    """Bytes/s in one direction, over all links of the chip."""


# Sources: cloud.google.com/tpu/docs/{v5e,v5p,v6e}, and NVIDIA's data sheet of the H100 SXM. The memory of a TPU is the
# part that its compiler lets a program use. The memory of the H100 is 95 % of the total. The data sheets add up both
# directions of a link; these numbers are half of that.
CHIPS = {
    "v5e": Chip(15.75 * 2**30, 197e12, 819e9, 100e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 300e9),
    "v6e": Chip(31.24 * 2**30, 918e12, 1640e9, 224e9),
    "h100": Chip(0.95 * 79.1 * 2**30, 989e12, 3352e9, 450e9),
}

# JAX has two names for each TPU
_KINDS = {
    **dict.fromkeys(("TPU v5e", "TPU v5 lite"), "v5e"),
    **dict.fromkeys(("TPU v5p", "TPU v5"), "v5p"),
    **dict.fromkeys(("TPU v6e", "TPU v6 lite"), "v6e"),
    "NVIDIA H100 80GB HBM3": "h100",
}


def find_chip(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, or None for an unknown one, such as a CPU."""
    return CHIPS.get(_KINDS.get(device_kind, ""))
