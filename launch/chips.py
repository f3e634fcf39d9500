"""The slices that `launch/fit.py` knows, of the chips in `zeroseg_jax.chips`."""

import math
from typing import NamedTuple

from zeroseg_jax.chips import CHIPS, Chip
from zeroseg_jax.config import nearest
from zeroseg_jax.errors import InputError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
_NODES = ("1x1", "1x2", "1x4", "1x8", "2x8", "4x8", "8x8", "16x8", "32x8")
SHAPES = {
    "v5e": _FLAT,
    "v5p": _CUBE,
    "v6e": _FLAT,
    "a100": _NODES,  # nodes x GPUs
    "h100": _NODES,
    "h200": _NODES,
    "l4": _NODES,
    "rtx4090": _NODES,
}


class Gpu(NamedTuple):
    """What XLA asks about a GPU that is not there; the figures are those of NVIDIA's data sheets."""

    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int  # of each core, for float32
    clock: float  # GHz
    core_memory: int  # bytes of shared memory in each core
    cache: int  # bytes of the second level
    bandwidth: float  # bytes/s
    memory: float  # bytes on the card


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 167936, 40 << 20, 2039e9, 85.0e9),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 233472, 50 << 20, 3352e9, 84.9e9),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 128, 1.98, 233472, 60 << 20, 4800e9, 150.0e9),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 128, 2.04, 102400, 48 << 20, 300e9, 24.1e9),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 128, 2.52, 102400, 72 << 20, 1008e9, 25.2e9),
}


def target_config(gpu: Gpu) -> str:
    """XLA's description of a GPU that is not there (its `GpuTargetConfigProto`)."""
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  core_count: {gpu.cores}  fpus_per_core: {gpu.lanes}  clock_rate_ghz: {gpu.clock}
  threads_per_warp: 32  threads_per_block_limit: 1024
  threads_per_core_limit: {1536 if gpu.capability == (8, 9) else 2048}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: {gpu.core_memory - 1024}
  shared_memory_per_core: {gpu.core_memory}  l2_cache_size: {gpu.cache}
  memory_bandwidth: {gpu.bandwidth:.0f}  device_memory_size: {gpu.memory:.0f}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9  minor: 10 }}
device_description_str: "{gpu.name}"
"""


class Slice(NamedTuple):
    """So many chips of a kind, connected."""

    name: str
    kind: str
    shape: tuple[int, ...]
    chip: Chip
    chips: int


def parse_topology(name: str) -> Slice:
    """ "v5e:4x4" -> the slice. A kind alone, such as "l4", is one chip of it.

    Raises InputError for what is none of `SHAPES`, and for a shape without a kind.
    """
    kind, _, shape = name.partition(":")
    if kind in SHAPES and not shape:
        shape = SHAPES[kind][0]
    valid = [f"{k}:{s}" for k, shapes in SHAPES.items() for s in shapes]
    if f"{kind}:{shape}" not in valid:
        kinds = ", ".join(SHAPES)
        if kind in SHAPES:
            raise InputError(f"--topology={name} is not a slice; {kind} has {', '.join(SHAPES[kind])}")
        if any(name in shapes for shapes in SHAPES.values()):
            raise InputError(f"--topology={name} names no chip; write KIND:{name}, where KIND is one of {kinds}")
        raise InputError(f"--topology={name} is not a slice of {kinds}; did you mean {nearest(name, valid)}?")
    sizes = tuple(int(n) for n in shape.split("x"))
    return Slice(f"{kind}:{shape}", kind, sizes, CHIPS[kind], math.prod(sizes))
