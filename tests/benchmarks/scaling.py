"""How the compiled train step grows, on CPU devices: with devices in FLOPs and bytes, with depth, batch and views too.

    python tests/benchmarks/scaling.py --out DIR [--config configs/vitb16_online.py]

Compiles the config's step at a quarter of its width for 1, 2, 4 and 8 devices, data-parallel and with all parameters
split, and on one device for other depths, batches and views. Nothing is run, so nothing is timed but the compiler.
Prints a table and writes DIR/scaling.json. Expect ten minutes on one core.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "launch"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import fit
import jax
import numpy as np
from compiled import matmul_flops, moved_bytes
from jax.sharding import AxisType, Mesh
from rich.console import Console
from rich.table import Table

from zeroseg_jax import sharding
from zeroseg_jax.config import load_config
from zeroseg_jax.models.clip import CLIPConfig, VisionConfig

ROOT = Path(__file__).parents[2]
TEACHER = CLIPConfig(vision=VisionConfig(patch_size=16, width=192, depth=12, heads=3, mlp_width=768))
ROWS: dict[str, dict[str, Any]] = {
    **{f"data={n}": {"devices": n} for n in (1, 2, 4, 8)},
    **{f"fsdp={n}": {"devices": n, "fsdp": n} for n in (2, 4, 8)},
    **{f"depth {n}": {"student.depth": n} for n in (3, 6, 24)},
    **{f"batch {n}": {"batch_size": n} for n in (16, 64)},
    **{f"views {grids}": {"views.grids": grids} for grids in ((1,), (1, 2), (1, 2, 3, 4))},
}


def compile_row(path: Path, devices: int = 1, fsdp: int = 1, **changes: Any) -> dict[str, Any]:
    """Figures of one device and one step."""
    config = load_config(path)
    config.batch_size, config.dtype, config.teacher.chunk = 32, "float32", 1
    config.student.update({"width": 192, "heads": 3, "segment_heads": 3, "decoder_width": 128, "decoder_heads": 4})
    for key, value in changes.items():
        *groups, name = key.split(".")
        (config[groups[0]] if groups else config)[name] = value
    grid = np.array(jax.devices()[:devices]).reshape(devices // fsdp, fsdp, 1)
    mesh = Mesh(grid, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    traced, plan = fit.trace_step(config, mesh)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(plan.state["params"]))
    began = time.process_time()
    compiled = traced.lower().compile()
    seconds, memory = time.process_time() - began, compiled.memory_analysis()
    moved = moved_bytes(compiled.as_text())
    return {
        "flops": matmul_flops(traced.jaxpr) / devices,
        "state_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "bytes_per_parameter": {kind: size / parameters for kind, size in moved.items()},
        "compile_cpu_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/vitb16_online.py")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    arguments.out.mkdir(parents=True, exist_ok=True)
    fit.CLIPS[load_config(arguments.config).teacher.path] = TEACHER
    table = Table(title="one device and one step; float32, width 192, depth 12, batch 32, 14 views unless said")
    for column in ("", "GFLOP", "arguments, MB", "temporaries, MB", "moved, bytes a parameter", "compile, CPU s"):
        table.add_column(column, justify="right" if column else "left")
    results = {}
    for name, changes in ROWS.items():
        results[name] = result = compile_row(arguments.config, **changes)
        moved = ", ".join(f"{kind} {size:.2f}" for kind, size in result["bytes_per_parameter"].items() if size > 0.01)
        sizes = [f"{result[key] / 1e6:.0f}" for key in ("state_bytes", "temporary_bytes")]
        table.add_row(name, f"{result['flops'] / 1e9:.1f}", *sizes, moved, f"{result['compile_cpu_seconds']:.0f}")
        print(name, file=sys.stderr)
        (arguments.out / "scaling.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
