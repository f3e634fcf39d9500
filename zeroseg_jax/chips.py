"""The chips whose memory and peak rates are known, each from its maker's data sheet."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip. Rates are peaks that no program reaches; `network` is all links of a chip together, one way."""

    memory: float  # bytes that a program may use
    flops: float  # bfloat16 FLOP/s
    bandwidth: float  # bytes/s of the chip's main memory
    network: float  # bytes/s


# cloud.google.com/tpu/docs/{v5e,v5p,v6e}, and NVIDIA's data sheet of the H100 SXM. Memory of the TPUs is what their
# compiler grants, of the H100 what JAX takes if told to take 95 %. The data sheets give the links of a chip in both
# directions together; half of that is one way.
CHIPS = {
    "v5e": Chip(15.75 * 2**30, 197e12, 819e9, 100e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 300e9),
    "v6e": Chip(31.24 * 2**30, 918e12, 1640e9, 224e9),
    "h100": Chip(0.95 * 79.1 * 2**30, 989e12, 3352e9, 450e9),
}

# as JAX calls them; the TPUs have two names each
_KINDS = {
    **dict.fromkeys(("TPU v5e", "TPU v5 lite"), "v5e"),
    **dict.fromkeys(("TPU v5p", "TPU v5"), "v5p"),
    **dict.fromkeys(("TPU v6e", "TPU v6 lite"), "v6e"),
    "NVIDIA H100 80GB HBM3": "h100",
}


def find_chip(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`; None for one that is not known here, such as a CPU."""
    return CHIPS.get(_KINDS.get(device_kind, ""))
