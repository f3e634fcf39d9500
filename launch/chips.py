"""The slices that `launch/fit.py` knows, of the chips in `zeroseg_jax.chips`."""

import math
from typing import NamedTuple

from zeroseg_jax.chips import CHIPS, Chip
from zeroseg_jax.config import nearest
from zeroseg_jax.errors import InputError

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
