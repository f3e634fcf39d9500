"""What a run is going to cost: its FLOPs, and a rough time on this machine."""

import jax
from ml_collections import ConfigDict

from zeroseg_jax.chips import measured_flops, peak_flops
from zeroseg_jax.distill.model_flops import student_flops, teacher_flops
from zeroseg_jax.distill.plan import Plan
from zeroseg_jax.distill.teacher import Teacher
from zeroseg_jax.progress import spoken

USED_SHARE = 0.35
"""Share of a chip's peak that such steps reach, by the measurements in docs/performance.md."""


def forecast(config: ConfigDict, plan: Plan, teacher: Teacher, images: int, done: int = 0) -> str:
    """One line: the FLOPs of the teacher's views and of the steps, the bytes of the state, and about how long it takes.

    `done` is the number of steps that an earlier part of the run has taken. Only what is left is counted. Stored views
    are all there before the first step.
    """
    steps = config.steps - done
    student = steps * config.batch_size * student_flops(plan.student, config.loss.mae > 0)
    views = teacher_flops(teacher.sizes, teacher.boxes, config.image_size, config.views.local_size)
    stored = config.teacher.source == "cache"
    if stored:
        teacher_total = 0 if done else views * images * config.teacher.cached_crops * (1 + config.data.flip)
    else:
        teacher_total = views * steps * config.batch_size
    peak = peak_flops(jax.devices())
    speed = jax.device_count() * measured_flops() if peak is None else USED_SHARE * peak
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plan.state))
    left = f"the {steps} steps that are left" if done else f"{steps} steps"
    return (
        f"to compute: {teacher_total / 1e12:,.3g} TFLOP for the teacher's views{', once,' if stored else ''} and"
        f" {student / 1e12:,.3g} TFLOP for {left}; parameters and optimiser take {state / 1e9:.2f} GB;"
        f" very roughly {spoken((student + teacher_total) / speed)} on this machine, without compiling and reading"
    )
