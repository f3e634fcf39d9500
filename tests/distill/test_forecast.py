"""The line that says at the start of a run what it has to compute."""

import re

import pytest

from zeroseg_jax.distill.forecast import forecast
from zeroseg_jax.distill.plan import make_plan
from zeroseg_jax.distill.teacher import load_teacher
from zeroseg_jax.sharding import make_mesh


@pytest.mark.parametrize("source", ["online", "cache"])
def test_a_resumed_run_counts_what_is_left(tiny_config, source):
    config = tiny_config
    config.steps, config.teacher.source = 100, source
    teacher = load_teacher(config)
    plan = make_plan(config, teacher, make_mesh(config.mesh))

    def flops(done: int) -> list[float]:
        line = forecast(config, plan, teacher, 20, done)
        assert ("for 100 steps;" if not done else f"for the {100 - done} steps that are left;") in line
        return [float(number.replace(",", "")) for number in re.findall(r"([\d.,e+-]+) TFLOP", line)]

    (views, steps), (views_left, steps_left) = flops(0), flops(75)
    assert views > 0 and steps_left == pytest.approx(steps / 4, rel=0.01)
    # the embeddings of a cached run are all stored before its first step
    assert views_left == pytest.approx(0 if source == "cache" else views / 4, rel=0.01)
