"""What a run is going to cost: its FLOPs, and a rough time on this machine."""

import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from zeroseg_jax.chips import find_chip
from zeroseg_jax.distill.model_flops import student_flops, teacher_flops
from zeroseg_jax.distill.plan import Plan
from zeroseg_jax.distill.teacher import Teacher

USED_SHARE = 0.35
"""Share of a chip's peak that such steps reach, by the measurements in docs/performance.md."""
MATMUL = 1024
"""Side of the matrices whose product is timed where the peak is not known."""


def forecast(config: ConfigDict, plan: Plan, teacher: Teacher, images: int) -> str:
    """One line: FLOPs of the stored views (once) and of the steps, bytes of the state, and about how long it takes."""
    student = config.steps * config.batch_size * student_flops(plan.student, config.loss.mae > 0)
    views = teacher_flops(teacher.sizes, teacher.boxes, config.image_size, config.views.local_size)
    looks = images * config.teacher.cached_crops * (1 + config.data.flip)
    once = config.teacher.source == "cache"
    seen = views * (looks if once else config.steps * config.batch_size)
    seconds = (student + seen) / (jax.device_count() * flops_per_second(jax.devices()[0]))
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plan.state))
    return (
        f"to compute: {seen / 1e12:,.3g} TFLOP for the teacher's views{', once,' if once else ''} and"
        f" {student / 1e12:,.3g} TFLOP for {config.steps} steps; parameters and optimiser take {state / 1e9:.2f} GB;"
        f" very roughly {duration(seconds)} on this machine, without compiling and reading"
    )


def flops_per_second(device: jax.Device) -> float:
    """What such steps reach on a device: a share of its peak, or where that is not known the speed of a product."""
    chip = find_chip(device.device_kind)
    if chip is not None:
        return USED_SHARE * chip.flops
    x = jax.device_put(jnp.ones((MATMUL, MATMUL)), device)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    start = time.perf_counter()
    for _ in range(4):
        multiply(x, x).block_until_ready()
    return 4 * 2 * MATMUL**3 / (time.perf_counter() - start)


def duration(seconds: float) -> str:
    """A time in the unit that suits it, such as "4 minutes"."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} seconds"
