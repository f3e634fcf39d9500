"""What a stored teacher saves: the training step with cached embeddings against the online one, at ViT-B/16 shapes.

    python tests/benchmarks/cached_step.py --out DIR [--batch 2] [--repeats 3] [--config configs/vitb16_online.py]

The student, the teacher (CLIP ViT-B/16), the losses and the optimiser are those of the config, with random weights and
in float32. The embeddings of the batch are stored by `--mode=embed`'s own code and read back for each cached step. Both
steps start from one state and must give the same loss; then they take turns. Prints a table and writes
DIR/cached_step.json: CPU-seconds and seconds of each step, and images/s. On one CPU core expect ten minutes.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from zeroseg_jax import sharding
from zeroseg_jax.config import load_config
from zeroseg_jax.distill.plan import make_plan
from zeroseg_jax.distill.teacher import make_teacher
from zeroseg_jax.distill.teacher_cache import open_cache
from zeroseg_jax.distill.views import view_boxes
from zeroseg_jax.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.models.layers import with_kernels_in

GOAL = 5.0
"""Images/s of the cached step by those of the online one."""


class Noise:
    """A source of random images that need no decoding."""

    def __init__(self, count: int, size: int):
        self._images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._images)

    def key(self, i: int) -> str:
        return str(i)

    def read(self, i: int) -> np.ndarray:
        return self._images[i]

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self._images[i], "key": self.key(i)}


def random_clip(patch_size: int, dtype: str) -> ClipEncoder:
    """CLIP ViT-B with random weights and a text tower as small as can be, which is not used here."""
    vision = VisionConfig(patch_size=patch_size)
    text = TextConfig(vocabulary=8, context=4, width=8, depth=1, heads=1, mlp_width=8, start_id=1, end_id=3)
    return ClipEncoder(CLIP(CLIPConfig(vision, text), dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))


class Steps:
    """The training step of a config, ready to run with an online or a cached teacher; the first of each compiles."""

    def __init__(self, config: Any, folder: Path):
        clip = random_clip(config.student.patch_size, config.dtype)
        boxes = view_boxes(config.views.grids, config.views.windows)
        teacher = make_teacher(clip, boxes, chunk=config.teacher.chunk)
        teacher = teacher._replace(params=with_kernels_in(config.dtype, teacher.params))
        source, self.mesh = Noise(config.batch_size, config.image_size), sharding.make_mesh(config.mesh)
        self.plan = make_plan(config, teacher, self.mesh)
        self.initial = jax.jit(self.plan.initial_state, out_shardings=self.plan.shardings)
        self.images, self.index = np.stack([source.read(i) for i in range(len(source))]), np.arange(len(source))
        self.params = jax.device_put(teacher.params, sharding.replicated(self.mesh))
        self.cache = open_cache(teacher, source, config, folder)

    def run(self, kind: str, state: Any) -> tuple[Any, float]:
        """One step of a kind, "online" or "cached": the next state and the loss."""
        batch = {"image": self.images}
        if kind == "cached":
            batch["teacher"] = self.cache(self.index, np.zeros_like(self.index), np.zeros(len(self.index), bool))
        state, metrics = self.plan.train_step(state, sharding.to_devices(batch, self.mesh), self.params)
        return state, float(metrics["loss"])


def on_cpu(config: Any, batch: int, tiny: bool = False, dtype: str = "float32") -> Any:
    """`config` as it is measured: whole images, what fits a CPU's cache at once."""
    config.batch_size, config.dtype, config.data.workers = batch, dtype, 0
    config.data.augment, config.data.flip = "none", False
    config.teacher.chunk = 1
    if tiny:
        config.image_size, config.views.grids, config.student.depth = 32, (1,), 1
    return config


def measure(config: Any, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of each step of both kinds, in turns; the first of each, which compiles, is not among them."""
    times: dict[str, list[dict[str, float]]] = {"online": [], "cached": []}
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(config, Path(folder))
        losses = [steps.run(kind, steps.initial())[1] for kind in times]
        assert abs(losses[0] - losses[1]) < 1e-3 * abs(losses[0]), f"the two steps have the losses {losses}"
        state = steps.initial()
        for _ in range(repeats):
            for kind, taken in times.items():
                cpu, wall = time.process_time(), time.perf_counter()
                state, loss = steps.run(kind, state)
                spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
                taken.append(spent | {"loss": loss})
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default=str(Path(__file__).parents[2] / "configs/vitb16_online.py"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a trial of the script itself")
    arguments = parser.parse_args()
    config = on_cpu(load_config(arguments.config), arguments.batch, arguments.tiny)
    times = measure(config, arguments.repeats)

    result: dict[str, Any] = {"batch_size": config.batch_size, "config": arguments.config, "tiny": arguments.tiny}
    table = Table(title=f"one training step of {config.batch_size} images, median of {arguments.repeats}")
    for column in ("", "CPU s", "s", "images / CPU s", "images / s"):
        table.add_column(column, justify="right" if column else "left")
    for kind, taken in times.items():
        cpu, wall = (float(np.median([t[unit] for t in taken])) for unit in ("cpu", "wall"))
        speed = {"images_per_cpu_second": config.batch_size / cpu, "images_per_second": config.batch_size / wall}
        result[kind] = {"cpu": cpu, "wall": wall, **speed, "repeats": taken}
        table.add_row(kind, f"{cpu:.2f}", f"{wall:.2f}", *(f"{value:.3f}" for value in speed.values()))
    ratios = {
        name: result["cached"][name] / result["online"][name] for name in ("images_per_cpu_second", "images_per_second")
    }
    result["cached_by_online"] = ratios
    table.add_row("cached / online", "", "", *(f"{ratio:.1f}" for ratio in ratios.values()))
    table.caption = f"the goal is {GOAL:g} times"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cached_step.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
