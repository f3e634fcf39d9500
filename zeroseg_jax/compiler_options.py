"""What XLA is told, beside its defaults, when it compiles programs with the teacher in them."""

from pathlib import Path

import jax
from jax.sharding import Mesh

Options = dict[str, str | bool]

ONEDNN: Options = {
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}
"""A CPU's matrix products by oneDNN; XLA's own library keeps the sums and with them the attention. Where the processor
has bfloat16, oneDNN makes its products twice as fast as float32's and faster than XLA's library; elsewhere it is the
slower of the two. Before jaxlib 0.11 these options take the library away and give no other."""
V5E: Options = {"xla_tpu_scoped_vmem_limit_kib": "12288"}
"""With the default, 16 MiB of fast memory for each operation, programs are larger and take longer to compile, and by
the compiler's own count of cycles they run no faster (docs/performance.md)."""


def compiler_options(mesh: Mesh) -> Options:
    """What `jax.jit` is given for these devices."""
    kind = mesh.devices.flat[0].device_kind
    if kind == "cpu":
        return ONEDNN if jax.__version_info__ >= (0, 11) and multiplies_bfloat16() else {}
    return V5E if kind == "TPU v5 lite" else {}


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor here, one of x86-64, has products of bfloat16: Intel's servers of 2020 and later (Cooper
    Lake, Sapphire Rapids), AMD's since Zen 4. `cpuinfo` is where Linux tells; elsewhere False."""
    if not cpuinfo.is_file():
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpuinfo.read_text(encoding="utf-8").split())
