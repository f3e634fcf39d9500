"""Compiles the train step of a config for TPUs that are not there, and says whether it fits.

    python launch/fit.py --config=configs/vitb16.py --topology=v5e:4x4 [--json] [--config.KEY=VALUE ...]

It needs `pip install libtpu`, no TPU, and one such process at a time. What the compiler says (memory, collectives) is
exact for its version; times and images/s are rooflines at full efficiency, that is estimates no run will reach.
"""

import dataclasses
import functools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from absl import app, flags
from chips import Chip, parse_topology
from collectives import collectives
from flax import nnx
from flops import matmul_flops
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

import main as command
from zeroseg_jax import sharding
from zeroseg_jax.checkpoint import make_student_config
from zeroseg_jax.config import load_config, validate
from zeroseg_jax.distill.step import make_optimizer, make_state, make_train_step
from zeroseg_jax.distill.teacher import find_shipped, make_teacher
from zeroseg_jax.distill.views import view_boxes
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIP, CLIPConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import ClipEncoder, read_clip_config
from zeroseg_jax.models.student import Student

TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "kind and shape of the slice, such as v5e:4x4 or v5p:2x2x4")
JSON = flags.DEFINE_bool("json", False, "print one JSON object instead of the table")

GIB = 2**30

# Sizes of OpenAI's models, so that nothing is downloaded for them
_L14 = VisionConfig(patch_size=14, width=1024, depth=24, heads=16, mlp_width=4096)
CLIPS = {
    "openai/clip-vit-base-patch32": CLIPConfig(),
    "openai/clip-vit-base-patch16": CLIPConfig(vision=VisionConfig(patch_size=16)),
    "openai/clip-vit-large-patch14": CLIPConfig(vision=_L14, embed_dim=768),
    "openai/clip-vit-large-patch14-336": CLIPConfig(vision=dataclasses.replace(_L14, image_size=336), embed_dim=768),
}


def topology_mesh(name: str, chips: int, shape: ConfigDict) -> Mesh:
    """The config's mesh over the devices of a topology that need not exist."""
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:
        if "libtpu" in str(error) or "backend" in str(error):
            raise InputError("the TPU compiler is not installed; pip install libtpu") from error
        raise
    sizes = [shape[axis] for axis in sharding.AXES]
    known = -1 * functools.reduce(lambda a, b: a * b, sizes) if -1 in sizes else chips
    sizes = [chips // known if size == -1 else size for size in sizes]
    if functools.reduce(lambda a, b: a * b, sizes) != chips:
        raise InputError(f"a mesh of {tuple(sizes)} does not fit the {chips} chips of {name}; set mesh.data=-1")
    devices = mesh_utils.create_device_mesh(sizes, described.devices, allow_split_physical_axes=True)
    return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def trace_step(config: ConfigDict, mesh: Mesh) -> Any:
    """The train step of zeroseg_jax/distill/step.py, traced for `mesh` with shapes alone; also its parameter count."""
    path = config.teacher.path
    sizes = CLIPS[path] if path in CLIPS else read_clip_config(find_shipped(path))
    dtype = jnp.dtype(config.dtype)
    clip = ClipEncoder(nnx.eval_shape(lambda: CLIP(sizes, rngs=nnx.Rngs(0), dtype=dtype)))
    boxes = view_boxes(config.views.grids, config.views.windows)
    # the teacher multiplies its chunk by the devices of this machine, which are not those of the topology
    teacher = make_teacher(clip, boxes, chunk=config.teacher.chunk * mesh.size // jax.device_count())
    make = functools.partial(Student, make_student_config(config, clip.embed_dim), dtype=dtype)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    optimizer = make_optimizer(config.optimizer, config.steps)
    abstract = jax.eval_shape(lambda: make_state(nnx.to_pure_dict(nnx.state(make(rngs=nnx.Rngs(0)))), optimizer))
    shardings = sharding.state_shardings(abstract, mesh)

    def place(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    split, side = sharding.batch_sharding(mesh), config.image_size
    batch = {"image": jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8, sharding=split)}
    if config.teacher.source == "cache":
        shape = (config.batch_size, len(boxes), clip.embed_dim)
        batch["teacher"] = jax.ShapeDtypeStruct(shape, jnp.float16, sharding=split)
    frozen = jax.tree.map(lambda leaf: place(leaf, sharding.replicated(mesh)), teacher.params)
    step = make_train_step(graphdef, optimizer, teacher, config, shardings)
    traced = step.trace(jax.tree.map(place, abstract, shardings), batch, frozen)
    return traced, sum(leaf.size for leaf in jax.tree.leaves(abstract["params"]))


def fit(config: ConfigDict, topology: str) -> dict[str, Any]:
    """Compiles, and returns the figures that the table shows; bytes and FLOPs are those of one chip and one step."""
    validate(config)
    _, chip, chips = parse_topology(topology)
    mesh = topology_mesh(topology, chips, config.mesh)
    sharding.check_batch(config.batch_size // config.optimizer.accumulate, mesh)
    traced, parameters = trace_step(config, mesh)
    flops = matmul_flops(traced.jaxpr) / chips
    result: dict[str, Any] = {"topology": topology, "chips": chips, "batch_size": config.batch_size}
    result |= {"remat": config.student.remat, "parameters": parameters, "flops": flops, "limit": chip.memory}
    began = time.process_time()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"\(([\d.]+)([GM])\) exceeds available HBM", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or used is None:
            raise
        peak = float(used[1]) * (GIB if used[2] == "G" else 2**20)
        return result | {"temporaries": peak} | verdict(peak, config, chip)
    memory = compiled.memory_analysis()
    result |= {"compile_cpu_seconds": time.process_time() - began}
    result |= {"arguments": memory.argument_size_in_bytes, "outputs": memory.output_size_in_bytes}
    result |= {"temporaries": memory.temp_size_in_bytes, "peak": memory.peak_memory_in_bytes}
    result["collectives"] = {kind: each._asdict() for kind, each in collectives(compiled.as_text()).items()}
    return result | roofline(result, config, chip) | verdict(result["peak"], config, chip)


def roofline(result: dict[str, Any], config: ConfigDict, chip: Chip) -> dict[str, float]:
    """Estimates: the seconds of a step's arithmetic and network at the chip's peaks, and what follows from the larger.

    An all-reduce sends its bytes about twice. There is no estimate of memory traffic: the compiler gives none that
    counts loops.
    """
    sent = sum(each["bytes"] * (2 if kind == "all-reduce" else 1) for kind, each in result["collectives"].items())
    compute, network = result["flops"] / chip.flops, sent / chip.network
    step = max(compute, network)
    hours = step * config.steps * result["chips"] / 3600
    return {
        "compute_seconds": compute,
        "network_seconds": network,
        "images_per_second": config.batch_size / step,
        "chip_hours": hours,
    }


def verdict(peak: float, config: ConfigDict, chip: Chip) -> dict[str, str]:
    """`fits`, or `too large` and the setting to change: the cheapest first."""
    if peak <= chip.memory:
        return {"verdict": "fits", "change": ""}
    stronger = {"none": "dots", "dots": "full"}.get(config.student.remat)
    if stronger:
        return {"verdict": "too large", "change": f"--config.student.remat={stronger}"}
    if config.teacher.source == "online" and config.teacher.chunk == 0:
        return {"verdict": "too large", "change": "--config.teacher.chunk=2"}
    return {"verdict": "too large", "change": f"--config.optimizer.accumulate={2 * config.optimizer.accumulate}"}


def table(result: dict[str, Any]) -> Table:
    """The figures for a reader."""
    shown = Table(title=f"{result['topology']}, {result['batch_size']} images a step, remat {result['remat']}")
    shown.add_column("per chip")
    shown.add_column("", justify="right")
    for name in ("arguments", "outputs", "temporaries", "peak", "limit"):
        if name in result:
            shown.add_row(f"memory: {name}", f"{result[name] / GIB:.2f} GiB")
    shown.add_row("matmul FLOPs a step", f"{result['flops'] / 1e12:.2f} TFLOP")
    for kind, traffic in result.get("collectives", {}).items():
        shown.add_row(f"{kind}, {traffic['count']} a step", f"{traffic['bytes'] / 1e6:.1f} MB")
    if "compute_seconds" in result:
        shown.add_row("estimate: arithmetic at peak", f"{1e3 * result['compute_seconds']:.1f} ms")
        shown.add_row("estimate: network at peak", f"{1e3 * result['network_seconds']:.1f} ms")
        shown.add_row("estimate: images/s of all chips, at most", f"{result['images_per_second']:.0f}")
        shown.add_row("estimate: chip-hours of the run, at least", f"{result['chip_hours']:.1f}")
        shown.add_row("compile, CPU-seconds", f"{result['compile_cpu_seconds']:.0f}")
    shown.add_row("verdict", result["verdict"] + (f": try {result['change']}" if result["change"] else ""))
    return shown


def main(argv: list[str]) -> None:
    del argv
    try:
        result = fit(load_config(command.CONFIG.value, command.overrides), TOPOLOGY.value)
    except InputError as error:
        command.fail(str(error))
    if JSON.value:
        print(json.dumps(result))
    else:
        Console().print(table(result))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    app.run(main, flags_parser=command.parse_flags)
