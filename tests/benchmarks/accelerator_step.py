"""How fast the real train step runs on the accelerator of this machine, for a config and changes of it.

    python tests/benchmarks/accelerator_step.py --out DIR [--config configs/vitb16.py] [--batch 256] [--steps 10] \\
        ["student.remat=dots teacher.chunk=8" ...]

Each quoted argument is a row: the config with these keys set, "" for none. Weights and images are random, and the
images lie on the device already, so nothing but the step is timed. Prints a table and writes DIR/accelerator_step.json:
seconds of a step (median of three times `--steps`), images/s, the compiler's peak of memory, and the FLOP/s of the
matrix products that the model's sizes ask for, by those of one large bfloat16 product on the same device. Expect a
minute a row.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "launch"))

import fit
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from zeroseg_jax import sharding
from zeroseg_jax.config import load_config, validate
from zeroseg_jax.distill.plan import make_plan
from zeroseg_jax.distill.teacher import make_teacher
from zeroseg_jax.distill.views import view_boxes
from zeroseg_jax.models.clip import CLIP
from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.models.layers import with_kernels_in

ROOT = Path(__file__).parents[2]
SIDE = 8192
REPEATS = 3


def timed(run: Any, state: Any, times: int) -> float:
    """Median seconds of `state = run(state)`, of which `times` are waited for together."""
    state, taken = jax.block_until_ready(run(state)), []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(times):
            state = run(state)
        jax.block_until_ready(state)
        taken.append((time.perf_counter() - began) / times)
    return float(np.median(taken))


def product_rate() -> float:
    """FLOP/s of a large bfloat16 matrix product."""
    x, y = (jax.random.normal(jax.random.key(i), (SIDE, SIDE), jnp.bfloat16) for i in range(2))
    return 2 * SIDE**3 / timed(jax.jit(lambda x: (x @ y) * jnp.bfloat16(SIDE**-0.5)), x, times=20)


def measure(config: ConfigDict, steps: int) -> dict[str, Any]:
    """Compiles the step of `config`, and runs it."""
    validate(config)
    mesh = sharding.make_mesh(config.mesh)
    sizes, dtype = fit.clip_sizes(config), jnp.dtype(config.dtype)
    clip = ClipEncoder(CLIP(sizes, rngs=nnx.Rngs(0), dtype=dtype))
    boxes = view_boxes(config.views.grids, config.views.windows)
    teacher = make_teacher(clip, boxes, config.teacher.chunk, config.views.local_size)
    plan = make_plan(config, teacher, mesh)
    state = jax.jit(plan.initial_state, out_shardings=plan.shardings)()
    rng, side = np.random.default_rng(0), config.image_size
    batch = {"image": rng.integers(0, 256, (config.batch_size, side, side, 3), dtype=np.uint8)}
    if config.teacher.source == "cache":
        batch["teacher"] = rng.normal(0, 1, (config.batch_size, len(boxes), clip.embed_dim)).astype(np.float16)
    images = sharding.to_devices(batch, mesh)
    frozen = jax.device_put(with_kernels_in(dtype, teacher.params), sharding.replicated(mesh))
    lowered = plan.train_step.lower(state, images, frozen)
    began = time.perf_counter()
    compiled = lowered.compile()
    compiling = time.perf_counter() - began
    seconds = timed(lambda state: compiled(state, images, frozen)[0], state, steps)
    memory = compiled.memory_analysis()
    assert memory is not None
    return {
        "seconds": seconds,
        "images_per_second": config.batch_size / seconds,
        "flops": fit.flops_of_image(config) * config.batch_size / mesh.size,
        "peak_bytes": memory.peak_memory_in_bytes,
        "compile_seconds": compiling,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/vitb16.py")
    parser.add_argument("--batch", type=int, default=256, help="images of all devices together")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("changes", nargs="*", default=[""])
    arguments = parser.parse_args()
    rate, results = product_rate(), {}
    device = jax.devices()[0].device_kind
    table = Table(title=f"{device} x {jax.device_count()}, {arguments.config.stem}, {arguments.batch} images a step")
    for column in ("", "ms", "images/s", "TFLOP/s a device", "of one product's", "peak, GiB", "compile, s"):
        table.add_column(column, justify="right" if column else "left")
    for changes in arguments.changes:
        pairs = [change.split("=", 1) for change in changes.split()]
        config = load_config(arguments.config, [("batch_size", str(arguments.batch)), *map(tuple, pairs)])
        try:
            row = results[changes] = measure(config, arguments.steps)
        except jax.errors.JaxRuntimeError as error:
            if not re.search("RESOURCE_EXHAUSTED|out of memory", str(error)):
                raise
            results[changes] = {"error": "out of memory"}
            table.add_row(changes or "as it is", "out of memory")
            continue
        reached = row["flops"] / row["seconds"]
        row["of_product_rate"] = reached / rate
        cells = f"{1e3 * row['seconds']:.1f}", f"{row['images_per_second']:.0f}", f"{reached / 1e12:.0f}"
        memory = f"{row['peak_bytes'] / 2**30:.2f}", f"{row['compile_seconds']:.0f}"
        table.add_row(changes or "as it is", *cells, f"{reached / rate:.0%}", *memory)
        print(changes or "as it is", *cells, *memory, file=sys.stderr, flush=True)
    table.caption = f"one product of {SIDE} x {SIDE} numbers reaches {rate / 1e12:.0f} TFLOP/s"
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"device": device, "devices": jax.device_count(), "jax": jax.__version__, "product_rate": rate}
    report |= {"batch_size": arguments.batch, "config": str(arguments.config), "rows": results}
    (arguments.out / "accelerator_step.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
