"""Compiles the train step of a config for chips that are not there, and says whether it fits.

    python launch/fit.py --config=configs/vitb16.py --topology=v5e:4x4 [--json] [--config.KEY=VALUE ...]

It needs no device, only the compiler: `pip install 'jax[tpu]'` for TPUs, of which one process can run at a time, and
`pip install 'jax[cuda]'` for GPUs. Memory is what the compiler says. Times and images/s are what the arithmetic takes
at the chip's peak, which no run reaches.
"""

import dataclasses
import importlib.util
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from absl import app, flags
from chips import GPUS, Slice, parse_topology, target_config
from flax import nnx
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

import main as command
from zeroseg_jax import sharding
from zeroseg_jax.config import load_config, validate
from zeroseg_jax.distill.model_flops import image_flops
from zeroseg_jax.distill.plan import Plan, make_plan
from zeroseg_jax.distill.teacher import make_teacher
from zeroseg_jax.distill.views import view_boxes
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIPConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import ClipEncoder, make_model, read_clip_config
from zeroseg_jax.models.layers import with_kernels_in
from zeroseg_jax.models.siglip import SiglipConfig
from zeroseg_jax.models.student_config import make_student_config, with_teacher_sizes

TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:4x4", "kind and shape of the slice, such as v5e:4x4 or h100:2x8; a kind alone is one chip"
)
PROGRAM = flags.DEFINE_string("program", "", "file for the text of the compiled program")
JSON = flags.DEFINE_bool("json", False, "print one JSON object instead of the table")

GIB = 2**30
SMALL_PART = 16
"""Images; smaller parts are not proposed before recomputation is. Parts of 16 and of 64 images take 10.0 and 9.5
million cycles an image on v5e, by the compiler's count; one part of 256 with `dots` takes 10.1."""
KEPT = {"none": 1.0, "dots": 0.25, "full": 0.12}
"""About the share of the activations that recomputation leaves: 37.6, 8.0 and 3.1 GiB of 256 images on v5e."""
MARGIN = 0.9
"""The part of a chip's memory that proposed settings may fill, since what they save is only estimated."""

WITHOUT_GPU = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""Options of the GPU compiler: nothing can be tried out, so matrix products are cuBLAS's."""

# Sizes of OpenAI's models, so that nothing is downloaded for them
_L14 = VisionConfig(patch_size=14, width=1024, depth=24, heads=16, mlp_width=4096)
CLIPS = {
    "openai/clip-vit-base-patch32": CLIPConfig(),
    "openai/clip-vit-base-patch16": CLIPConfig(vision=VisionConfig(patch_size=16)),
    "openai/clip-vit-large-patch14": CLIPConfig(vision=_L14, embed_dim=768),
    "openai/clip-vit-large-patch14-336": CLIPConfig(vision=dataclasses.replace(_L14, image_size=336), embed_dim=768),
}


def topology_mesh(where: Slice, axes: ConfigDict) -> Mesh:
    """The config's mesh over the devices of a slice that need not exist."""
    sizes = sharding.mesh_sizes(axes, where.chips)
    devices = mesh_utils.create_device_mesh(sizes, describe(where), allow_split_physical_axes=True)
    return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def describe(where: Slice) -> Sequence[jax.Device]:
    """The devices of a slice, as their compiler describes them."""
    extra = "cuda" if where.kind in GPUS else "tpu"
    modules = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13") if extra == "cuda" else ("libtpu",)
    if not any(is_installed(module) for module in modules):
        raise InputError(f"the compiler for {where.kind} is not installed; pip install 'jax[{extra}]'")
    if where.kind in GPUS:
        shape, gpu = "x".join(map(str, (1, *where.shape))), target_config(GPUS[where.kind])
        return topologies.get_topology_desc(platform="cuda", topology=shape, target_config=gpu).devices
    alone = {"chips_per_host_bounds": [1, 1, 1]} if where.chips == 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=where.name, **alone).devices
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error):
            raise
        raise InputError(
            "another process uses the TPU's compiler (libtpu), and only one at a time can; wait until it ends, or"
            " remove /tmp/libtpu_lockfile if there is no such process"
        ) from error


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def trace_step(config: ConfigDict, mesh: Mesh) -> tuple[Any, Plan]:
    """The train step of zeroseg_jax/distill/step.py, traced for `mesh` with shapes alone, and its plan."""
    sizes = clip_sizes(config)
    dtype = jnp.dtype(config.dtype)
    clip = ClipEncoder(nnx.eval_shape(lambda: make_model(sizes, dtype)))
    boxes = view_boxes(config.views.grids, config.views.windows)
    teacher = make_teacher(clip, boxes, config.teacher.chunk, config.views.local_size)
    plan = make_plan(config, teacher, mesh)

    split, side = sharding.batch_sharding(mesh), config.image_size
    batch = {"image": jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8, sharding=split)}
    if config.teacher.source == "cache":
        shape = (config.batch_size, len(boxes), clip.embed_dim)
        batch["teacher"] = jax.ShapeDtypeStruct(shape, jnp.float16, sharding=split)
    whole = sharding.replicated(mesh)
    frozen = jax.eval_shape(lambda params: with_kernels_in(dtype, params), teacher.params)
    frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), frozen)
    return plan.train_step.trace(plan.state, batch, frozen), plan


def clip_sizes(config: ConfigDict) -> CLIPConfig | SiglipConfig:
    """The sizes of the teacher."""
    path = config.teacher.path
    return CLIPS[path] if path in CLIPS else read_clip_config(path)


def fit(config: ConfigDict, topology: str, program_file: str = "") -> dict[str, Any]:
    """Compiles, and returns the figures that the table shows; bytes are those of one chip.

    The compiled program's text goes to `program_file`, if there is one.
    """
    config = with_teacher_sizes(config, clip_sizes(config))
    validate(config)
    where = parse_topology(topology)
    mesh = topology_mesh(where, config.mesh)
    sharding.check_batch(config.batch_size // config.optimizer.accumulate, mesh)
    traced, plan = trace_step(config, mesh)
    flops = config.batch_size * flops_of_image(config) / where.chips
    compute = flops / where.chip.flops
    result: dict[str, Any] = {"topology": topology, "chips": where.chips, "mesh": list(mesh.devices.shape)}
    result |= {"batch_size": config.batch_size, "limit": where.chip.memory}
    result |= {"parameters": sum(leaf.size for leaf in jax.tree.leaves(plan.state["params"]))}
    result |= {"remat": config.student.remat, "accumulate": config.optimizer.accumulate}
    result |= {"flops": flops, "compute_seconds": compute, "images_per_second": config.batch_size / compute}
    result |= {"chip_hours": compute * config.steps * where.chips / 3600}
    began = time.process_time()
    try:
        compiled = traced.lower().compile(WITHOUT_GPU if where.kind in GPUS else None)
    except jax.errors.JaxRuntimeError as error:
        result["peak"] = bytes_wanted(error)
    else:
        result["compile_cpu_seconds"] = time.process_time() - began
        memory = compiled.memory_analysis()
        result |= {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes}
        result |= {"peak": memory.peak_memory_in_bytes, "program": memory.generated_code_size_in_bytes}
        if program_file:
            Path(program_file).write_text(read_text(compiled, where), encoding="utf-8")
    images = config.batch_size // sharding.batch_parts(mesh)
    fits = result["peak"] <= where.chip.memory
    change = "" if fits else advice(config, result["peak"], state_bytes(plan), where.chip.memory, images)
    return result | {"verdict": "fits" if fits else "too large", "change": change}


def bytes_wanted(error: jax.errors.JaxRuntimeError) -> float:
    """The memory for which the compiler found no room; raises `error` again if it says something else."""
    used = re.search(r"Used ([\d.]+)([GM]) of", str(error)) or re.search(r"\(([\d.]+)([GM])\) exceeds", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or used is None:
        raise error
    return float(used[1]) * (GIB if used[2] == "G" else 2**20)


def state_bytes(plan: Plan) -> float:
    """Bytes that one chip needs whatever it does: the train state, and gradients of the size of the parameters."""

    def held(tree: Any) -> float:
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return held(plan.state) + held(plan.state["params"])


def read_text(compiled: Any, where: Slice) -> str:
    """The compiled program's text."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0][:150]
        raise InputError(
            f"jaxlib cannot read what the compiler for {where.kind} made ({said}); pip install 'jax[tpu]', which brings"
            " the compiler of its own age"
        ) from error


def flops_of_image(config: ConfigDict) -> float:
    """What the model should cost for one image, by its sizes."""
    clip = clip_sizes(config)
    boxes = view_boxes(config.views.grids, config.views.windows)
    return image_flops(config, make_student_config(config, clip.embed_dim, clip), clip, boxes)


def advice(config: ConfigDict, peak: float, fixed: float, limit: float, images: int) -> str:
    """The settings that should fit, by their estimated savings. Those that slow the step least come first.

    `peak`, `fixed` and `limit` are bytes of one chip: those of the present settings, those that stay whatever is set,
    and those that there are. A chip has `images` a step.
    """
    if config.teacher.source == "online" and config.teacher.chunk == 0:
        return "--config.teacher.chunk=2"
    activations = max(peak - fixed, 0) / KEPT[config.student.remat]
    parts = [n for n in range(config.optimizer.accumulate, images + 1) if images % n == 0]
    few = [n for n in parts if n == config.optimizer.accumulate or images // n >= SMALL_PART]
    stronger = list(KEPT)[list(KEPT).index(config.student.remat) :]
    choices = [(stronger[0], n) for n in few] + [(remat, few[-1]) for remat in stronger[1:]]
    choices += [(stronger[-1], n) for n in parts if n not in few]
    now = config.optimizer.accumulate
    for remat, n in choices[1:]:
        if fixed + activations * KEPT[remat] * now / n <= MARGIN * limit:
            changes = [f"--config.student.remat={remat}"] if remat != config.student.remat else []
            return " ".join(changes + ([f"--config.optimizer.accumulate={n}"] if n != now else []))
    if config.mesh.fsdp == 1:
        return "--config.mesh.data=1 --config.mesh.fsdp=-1"
    return f"--config.batch_size={config.batch_size // 2}"


def table(result: dict[str, Any]) -> Table:
    """The figures for a reader."""
    parts = f"{result['batch_size']} images a step in {result['accumulate']} part(s)"
    figures = Table(title=f"{result['topology']}, {parts}, remat {result['remat']}")
    figures.add_column("per chip")
    figures.add_column("", justify="right")
    for name in ("arguments", "temporaries", "peak", "limit"):
        if name in result:
            figures.add_row(f"memory: {name}", f"{result[name] / GIB:.2f} GiB")
    figures.add_row("FLOPs a step, by the model's sizes", f"{result['flops'] / 1e12:.2f} TFLOP")
    figures.add_row("estimate: a step at the chip's peak", f"{1e3 * result['compute_seconds']:.1f} ms")
    figures.add_row("estimate: images/s of all chips, at most", f"{result['images_per_second']:.0f}")
    figures.add_row("estimate: chip-hours of the run, at least", f"{result['chip_hours']:.1f}")
    if "compile_cpu_seconds" in result:
        figures.add_row("compile, CPU-seconds", f"{result['compile_cpu_seconds']:.0f}")
        figures.add_row("size of the program", f"{result['program'] / 2**20:.0f} MiB")
    figures.add_row("verdict", result["verdict"] + (f": try {result['change']}" if result["change"] else ""))
    return figures


def main(argv: list[str]) -> None:
    del argv
    try:
        result = fit(load_config(command.CONFIG.value, command.overrides), TOPOLOGY.value, PROGRAM.value)
    except InputError as error:
        command.fail(str(error))
    if JSON.value:
        print(json.dumps(result))
    else:
        Console().print(table(result))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    app.run(main, flags_parser=command.parse_flags)
