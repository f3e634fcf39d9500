"""The chips and slices that `launch/fit.py` knows: memory and peak rates, each from its maker's data sheet."""

import math
from typing import NamedTuple

from zeroseg_jax.config import nearest
from zeroseg_jax.errors import InputError


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
BETWEEN_NODES = 50e9
"""Bytes/s of an H100 out of its node of eight, by one 400 Gbit/s adapter for each."""

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SHAPES = {
    "v5e": _FLAT,
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    "v6e": _FLAT,
    "h100": ("1x4", "1x8", "2x8", "4x8", "8x8", "16x8", "32x8"),  # nodes x GPUs
}

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  l2_cache_size: 52428800  memory_bandwidth: 3352320000000  device_memory_size: 84942979072
}
platform_name: "CUDA"
dnn_version_info { major: 9  minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA asks about a GPU that is not there (its `GpuTargetConfigProto`)."""


class Slice(NamedTuple):
    """So many chips of a kind, connected."""

    name: str
    kind: str
    shape: tuple[int, ...]
    chip: Chip
    chips: int


def parse_topology(name: str) -> Slice:
    """ "v5e:4x4" -> the slice; raises InputError for what is none of `SHAPES`."""
    kind, _, shape = name.partition(":")
    valid = [f"{k}:{s}" for k, shapes in SHAPES.items() for s in shapes]
    if name not in valid:
        if kind in SHAPES:
            raise InputError(f"--topology={name} is no slice; {kind} has {', '.join(SHAPES[kind])}")
        kinds = ", ".join(SHAPES)
        raise InputError(f"--topology={name} is no slice of {kinds}; did you mean {nearest(name, valid)}?")
    sizes = tuple(int(n) for n in shape.split("x"))
    chip = CHIPS[kind]
    if kind == "h100" and sizes[0] > 1:
        chip = chip._replace(network=BETWEEN_NODES)
    return Slice(name, kind, sizes, chip, math.prod(sizes))
