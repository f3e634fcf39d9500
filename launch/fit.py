"""Compiles the train step of a config for TPUs that are not there, and says whether it fits.

    python launch/fit.py --config=configs/vitb16.py --topology=v5e:4x4 [--json|--row] [--config.KEY=VALUE ...]

It needs no device but the compiler: `pip install 'jax[tpu]'` for TPUs, of which one process can run at a time, and
`pip install 'jax[cuda]'` for h100. What the compiler says (memory, collectives) is exact for its version; times and
images/s are rooflines at full efficiency, that is estimates no run will reach.
"""

import dataclasses
import importlib.util
import json
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
from chips import H100, Slice, parse_topology
from collectives import collectives
from flax import nnx
from flops import matmul_flops
from hlo import parse
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from traffic import main_memory_bytes

import main as command
from zeroseg_jax import sharding
from zeroseg_jax.chips import Chip
from zeroseg_jax.config import load_config, validate
from zeroseg_jax.distill.model_flops import student_flops, teacher_flops
from zeroseg_jax.distill.plan import make_plan
from zeroseg_jax.distill.teacher import make_teacher
from zeroseg_jax.distill.views import view_boxes
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIPConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import ClipEncoder, make_model, read_clip_config
from zeroseg_jax.models.layers import with_kernels_in
from zeroseg_jax.models.siglip import SiglipConfig
from zeroseg_jax.models.student_config import make_student_config

TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:4x4", "kind and shape of the slice, such as v5e:4x4, v5p:2x2x4 or h100:2x8"
)
HLO = flags.DEFINE_string("hlo", "", "file for the text of the compiled program")
JSON = flags.DEFINE_bool("json", False, "print one JSON object instead of the table")
ROW = flags.DEFINE_bool("row", False, "print one row of the table in docs/performance.md instead")

GIB = 2**30
SMALL_PART = 16
"""Images; smaller parts are not proposed before recomputation is. Parts of 16 and of 64 images take 10.0 and 9.5
million cycles an image on v5e, by the compiler's count; one part of 256 with `dots` takes 10.1."""

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
    extra = "cuda" if where.kind == "h100" else "tpu"
    modules = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13") if extra == "cuda" else ("libtpu",)
    if not any(is_installed(module) for module in modules):
        raise InputError(f"the compiler for {where.kind} is not installed; pip install 'jax[{extra}]'")
    if where.kind == "h100":
        shape = "x".join(map(str, (1, *where.shape)))
        return topologies.get_topology_desc(platform="cuda", topology=shape, target_config=H100).devices
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=where.name).devices
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error):
            raise
        raise InputError(
            "another process uses the TPU's compiler (libtpu), which one at a time may load; wait for it to end, or if"
            " there is none, remove /tmp/libtpu_lockfile"
        ) from error


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def trace_step(config: ConfigDict, mesh: Mesh) -> tuple[Any, int]:
    """The train step of zeroseg_jax/distill/step.py, traced for `mesh` with shapes alone; also its parameter count."""
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
    traced = plan.train_step.trace(plan.state, batch, frozen)
    return traced, sum(leaf.size for leaf in jax.tree.leaves(plan.state["params"]))


def clip_sizes(config: ConfigDict) -> CLIPConfig | SiglipConfig:
    """The sizes of the teacher."""
    path = config.teacher.path
    return CLIPS[path] if path in CLIPS else read_clip_config(path)


def fit(config: ConfigDict, topology: str, hlo: str = "") -> dict[str, Any]:
    """Compiles, and returns the figures that the table shows; bytes and FLOPs are those of one chip and one step.

    The compiled program's text goes to the file `hlo`, if there is one.
    """
    validate(config)
    where = parse_topology(topology)
    mesh = topology_mesh(where, config.mesh)
    sharding.check_batch(config.batch_size // config.optimizer.accumulate, mesh)
    traced, parameters = trace_step(config, mesh)
    flops, model = matmul_flops(traced.jaxpr) / where.chips, flops_of_image(config) * config.batch_size / where.chips
    images = config.batch_size // sharding.batch_parts(mesh)
    result: dict[str, Any] = {"topology": topology, "chips": where.chips, "mesh": list(mesh.devices.shape)}
    result |= {"batch_size": config.batch_size, "parameters": parameters, "limit": where.chip.memory}
    result |= {"remat": config.student.remat, "accumulate": config.optimizer.accumulate}
    result |= {"flops": flops, "flops_by_model": flops / model}
    began = time.process_time()
    try:
        compiled = traced.lower().compile(WITHOUT_GPU if where.kind == "h100" else None)
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([GM]) of", str(error)) or re.search(r"\(([\d.]+)([GM])\) exceeds", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or used is None:
            raise
        peak = float(used[1]) * (GIB if used[2] == "G" else 2**20)
        return result | {"temporaries": peak} | verdict(peak, config, where.chip, images)
    result |= {"compile_cpu_seconds": time.process_time() - began}
    memory, text = compiled.memory_analysis(), read_text(compiled, where)
    result |= {"arguments": memory.argument_size_in_bytes, "outputs": memory.output_size_in_bytes}
    result |= {"temporaries": memory.temp_size_in_bytes, "peak": memory.peak_memory_in_bytes}
    result |= {"program": memory.generated_code_size_in_bytes}
    if hlo:
        Path(hlo).write_text(text, encoding="utf-8")
    program = parse(text)
    result["collectives"] = {kind: each._asdict() for kind, each in collectives(program).items()}
    result["main_memory_bytes"] = main_memory_bytes(program)
    return result | roofline(result, config, where.chip) | verdict(result["peak"], config, where.chip, images)


def read_text(compiled: Any, where: Slice) -> str:
    """The compiled program's text."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        told = str(error).splitlines()[0][:150]
        raise InputError(
            f"jaxlib cannot read what the compiler for {where.kind} made ({told}); pip install 'jax[tpu]', which brings"
            " the compiler of its own age"
        ) from error


def flops_of_image(config: ConfigDict) -> float:
    """What the model should cost for one image, by its sizes."""
    clip = clip_sizes(config)
    student = student_flops(make_student_config(config, clip.embed_dim), config.loss.mae > 0)
    if config.teacher.source == "cache":
        return student
    boxes = view_boxes(config.views.grids, config.views.windows)
    return student + teacher_flops(clip, boxes, config.image_size, config.views.local_size)


def roofline(result: dict[str, Any], config: ConfigDict, chip: Chip) -> dict[str, float]:
    """Estimates: the seconds of a step's arithmetic, memory and network at the chip's peaks, and what follows from the
    longest. An all-reduce sends its bytes about twice."""
    sent = sum(each["bytes"] * (2 if kind == "all-reduce" else 1) for kind, each in result["collectives"].items())
    compute, network = result["flops"] / chip.flops, sent / chip.network
    memory = result["main_memory_bytes"] / chip.bandwidth
    step = max(compute, memory, network)
    return {
        "compute_seconds": compute,
        "memory_seconds": memory,
        "network_seconds": network,
        "images_per_second": config.batch_size / step,
        "chip_hours": step * config.steps * result["chips"] / 3600,
    }


def verdict(peak: float, config: ConfigDict, chip: Chip, images: int) -> dict[str, str]:
    """`fits`, or `too large` and the setting to change: what slows the step least first. A chip has `images` a step."""
    if peak <= chip.memory:
        return {"verdict": "fits", "change": ""}
    parts, stronger = config.optimizer.accumulate, {"none": "dots", "dots": "full"}.get(config.student.remat)
    split = images % (2 * parts) == 0
    if config.teacher.source == "online" and config.teacher.chunk == 0:
        change = "--config.teacher.chunk=2"
    elif stronger and not (split and images >= 2 * parts * SMALL_PART):
        change = f"--config.student.remat={stronger}"
    elif split:
        change = f"--config.optimizer.accumulate={2 * parts}"
    elif config.mesh.fsdp == 1:
        change = "--config.mesh.data=1 --config.mesh.fsdp=-1"
    else:
        change = f"--config.batch_size={config.batch_size // 2}"
    return {"verdict": "too large", "change": change}


def table(result: dict[str, Any]) -> Table:
    """The figures for a reader."""
    parts = f"{result['batch_size']} images a step in {result['accumulate']} part(s)"
    shown = Table(title=f"{result['topology']}, {parts}, remat {result['remat']}")
    shown.add_column("per chip")
    shown.add_column("", justify="right")
    for name in ("arguments", "outputs", "temporaries", "peak", "limit"):
        if name in result:
            shown.add_row(f"memory: {name}", f"{result[name] / GIB:.2f} GiB")
    shown.add_row("matmul FLOPs a step", f"{result['flops'] / 1e12:.2f} TFLOP")
    shown.add_row("of them by the model's sizes", f"{1 / result['flops_by_model']:.1%}")
    for kind, traffic in result.get("collectives", {}).items():
        shown.add_row(f"{kind}, {traffic['times']} a step", f"{traffic['bytes'] / 1e6:.1f} MB")
    if "compute_seconds" in result:
        shown.add_row("estimate: arithmetic at peak", f"{1e3 * result['compute_seconds']:.1f} ms")
        shown.add_row("estimate: main memory at peak", f"{1e3 * result['memory_seconds']:.1f} ms")
        shown.add_row("estimate: network at peak", f"{1e3 * result['network_seconds']:.1f} ms")
        shown.add_row("estimate: images/s of all chips, at most", f"{result['images_per_second']:.0f}")
        shown.add_row("estimate: chip-hours of the run, at least", f"{result['chip_hours']:.1f}")
        shown.add_row("compile, CPU-seconds", f"{result['compile_cpu_seconds']:.0f}")
        shown.add_row("size of the program", f"{result['program'] / 2**20:.0f} MiB")
    shown.add_row("verdict", result["verdict"] + (f": try {result['change']}" if result["change"] else ""))
    return shown


def row(name: str, result: dict[str, Any]) -> str:
    """A line of the first table in docs/performance.md: config, slice, remat, parts, GiB of a chip (peak and limit),
    estimated ms of arithmetic, memory and network, images/s at most, chip-hours at least."""
    peak = result["peak"] if "peak" in result else result["temporaries"]
    memory = f"{peak / GIB:.2f} of {result['limit'] / GIB:.2f}"
    memory += "" if result["verdict"] == "fits" else f", {result['verdict']}"
    cells = [name, result["topology"], result["remat"], str(result["accumulate"]), memory]
    if "collectives" in result:
        times = [result[f"{kind}_seconds"] for kind in ("compute", "memory", "network")]
        cells.append(" / ".join(f"{1e3 * seconds:.0f}" for seconds in times))
        cells += [f"{result['images_per_second']:.0f}", f"{result['chip_hours']:.0f}"]
    else:
        cells += [""] * 3
    return f"| {' | '.join(cells)} |"


def main(argv: list[str]) -> None:
    del argv
    try:
        result = fit(load_config(command.CONFIG.value, command.overrides), TOPOLOGY.value, HLO.value)
    except InputError as error:
        command.fail(str(error))
    if ROW.value:
        print(row(Path(command.CONFIG.value).stem, result))
    elif JSON.value:
        print(json.dumps(result))
    else:
        Console().print(table(result))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    app.run(main, flags_parser=command.parse_flags)
