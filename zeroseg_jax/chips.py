"""Memory and peak rates of some accelerators, from their makers' data sheets."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Chip(NamedTuple):
    """One chip. The rate is a peak that no program reaches."""

    memory: float  # bytes that a program may use
    flops: float  # bfloat16 FLOP/s, dense


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, and NVIDIA's data sheets (SXM cards; of the RTX 4090 with float32 sums).
# The memory of TPUs is what their compiler allows (v4: all of it). That of GPUs is 95 % of what the driver leaves.
CHIPS = {
    "v4": Chip(32 * 2**30, 275e12),
    "v5e": Chip(15.75 * 2**30, 197e12),
    "v5p": Chip(95 * 2**30, 459e12),
    "v6e": Chip(31.24 * 2**30, 918e12),
    "a100": Chip(0.95 * 79.2 * 2**30, 312e12),
    "h100": Chip(0.95 * 79.1 * 2**30, 989e12),
    "h200": Chip(0.95 * 139.8 * 2**30, 989e12),
    "l4": Chip(0.95 * 22.0 * 2**30, 121e12),
    "rtx4090": Chip(0.95 * 23.5 * 2**30, 165e12),
}

# the names in JAX; newer TPUs have two names
_KINDS = {
    "TPU v4": "v4",
    **dict.fromkeys(("TPU v5e", "TPU v5 lite"), "v5e"),
    **dict.fromkeys(("TPU v5p", "TPU v5"), "v5p"),
    **dict.fromkeys(("TPU v6e", "TPU v6 lite"), "v6e"),
    **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), "a100"),
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA L4": "l4",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}


def find_chip(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, or None for an unknown one, such as a CPU."""
    return CHIPS.get(_KINDS.get(device_kind, ""))


def peak_flops(devices: Sequence[Any]) -> float | None:
    """The peak of devices of one kind, in bfloat16 FLOP/s. None if the kind is not in the table."""
    chip = find_chip(devices[0].device_kind)
    return chip.flops * len(devices) if chip else None


def measured_flops() -> float:
    """FLOP/s of a large matrix product on the first device, in float32."""
    side = 1024
    x = jnp.ones((side, side), jnp.float32)
    multiply = jax.jit(lambda x: x @ x)
    multiply(x).block_until_ready()
    start, count = time.monotonic(), 0
    while time.monotonic() - start < 0.2:
        multiply(x).block_until_ready()
        count += 1
    return count * 2 * side**3 / (time.monotonic() - start)
