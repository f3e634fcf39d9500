"""The parts of launch/fit.py that need no TPU compiler: FLOPs by the sizes, slices, advice."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "launch"))

import fit
from chips import GPUS, SHAPES, parse_topology
from compiled import matmul_flops, moved_bytes
from jax.sharding import Mesh

from zeroseg_jax import sharding
from zeroseg_jax.chips import CHIPS, find_chip
from zeroseg_jax.config import load_config
from zeroseg_jax.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_flops_of_a_scan_and_its_gradient():
    def loss(weights, x):
        return jax.lax.scan(lambda h, w: (h @ w, None), x, weights)[0].sum()

    weights, x = jnp.zeros((5, 8, 8)), jnp.zeros((3, 8))
    one = 2 * 3 * 8 * 8
    assert matmul_flops(jax.make_jaxpr(loss)(weights, x)) == 5 * one
    assert matmul_flops(jax.make_jaxpr(jax.grad(loss))(weights, x)) == 3 * 5 * one


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", ["vitb16", "vitb16_online"])
def test_the_step_has_the_flops_of_the_model(name):
    config = load_config(CONFIGS / f"{name}.py")
    config.batch_size, config.views.local_size = 16, 112
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    traced, plan = fit.trace_step(config, mesh)
    assert 180e6 < sum(leaf.size for leaf in jax.tree.leaves(plan.state["params"])) < 190e6
    assert fit.state_bytes(plan) == pytest.approx(4 * 4 * 182e6, rel=0.01)  # parameters, two moments, gradients
    assert matmul_flops(traced.jaxpr) / 16 / fit.flops_of_image(config) == pytest.approx(1, abs=1e-4)


def test_a_student_with_the_teachers_tower_needs_no_download(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = load_config(CONFIGS / "vitb16_grounded.py")
    config.batch_size = 1
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    _, plan = fit.trace_step(config, mesh)
    assert plan.student.tower == fit.clip_sizes(config).vision
    assert fit.flops_of_image(config) > 0


@pytest.mark.end_to_end
def test_mask_class_tokens_have_the_flops_of_the_model():
    config, mesh = load_config(CONFIGS / "demo.py"), Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    counted, expected = [], []
    for config.student.segment_feature in ("mlp", "mask_class_token"):
        counted.append(matmul_flops(fit.trace_step(config, mesh)[0].jaxpr) / config.batch_size)
        expected.append(fit.flops_of_image(config))
    assert np.diff(counted) == pytest.approx(np.diff(expected), rel=0.01)


def test_slices():
    assert parse_topology("v5e:4x4")[1:] == ("v5e", (4, 4), CHIPS["v5e"], 16)
    assert parse_topology("rtx4090:1x1").chips == 1
    assert parse_topology("l4") == parse_topology("l4:1x1")
    assert parse_topology("v5p").shape == (1, 1, 1)
    for kind, shapes in SHAPES.items():
        counts = [parse_topology(f"{kind}:{shape}").chips for shape in shapes]
        assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 256
    assert GPUS.keys() < SHAPES.keys()
    wrongs = {
        "v5e:3x5": "v5e has 1x1, 2x2",
        "v9:4x4": "did you mean v5e:4x4",
        "1x1": "names no chip; write KIND:1x1, where KIND is one of v5e, v5p, v6e, a100, h100, h200, l4, rtx4090",
    }
    for wrong, told in wrongs.items():
        with pytest.raises(InputError, match=told):
            parse_topology(wrong)


def test_a_gpu_that_is_not_there_is_described():
    told = fit.target_config(GPUS["rtx4090"])
    assert "major: 8 minor: 9" in told and "device_memory_size: 25200000000" in told and told.count("{") == 3


ONLINE = CONFIGS / "vitb16_online.py"


@pytest.mark.parametrize(
    ("peak", "overrides", "change"),
    [
        (30, {"teacher.chunk": "0"}, "--config.teacher.chunk=2"),
        (24, {}, "--config.optimizer.accumulate=2"),
        (60, {}, "--config.optimizer.accumulate=8"),
        # parts of 16 images are the smallest before something is computed again
        (400, {}, "--config.student.remat=dots --config.optimizer.accumulate=16"),
        (400, {"optimizer.accumulate": "16"}, "--config.student.remat=full --config.optimizer.accumulate=128"),
        (1400, {"student.remat": "dots"}, "--config.student.remat=full --config.optimizer.accumulate=64"),
        (1e6, {}, "--config.mesh.data=1 --config.mesh.fsdp=-1"),
        (1e6, {"mesh.fsdp": "-1", "mesh.data": "1"}, "--config.batch_size=2048"),
    ],
)
def test_the_advice_is_what_should_fit_at_once(peak, overrides, change):
    """256 images a chip of 15.75 GiB, of which the state takes 3."""
    config, gib = load_config(ONLINE, overrides.items()), 2**30
    assert fit.advice(config, peak * gib, 3 * gib, CHIPS["v5e"].memory, 256) == change


def test_bytes_on_the_network_are_read_from_a_compiled_program():
    text = """
  %ar = (bf16[8,4]{1,0}, f32[]) all-reduce(%x, %y), channel_id=1, to_apply=%add
  %ag = (f32[4]{0}, f32[16]{0}) all-gather-start(%g), channel_id=2, dimensions={0}
  %again = (f32[4]{0}, f32[16]{0}) all-gather-start(%g), channel_id=2, dimensions={0}
  %done = f32[16]{0} all-gather-done(%ag)
"""
    assert moved_bytes(text) == {"all-reduce": 8 * 4 * 2 + 4, "all-gather": 16 * 4}


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("cpu", ""),
    ],
)
def test_devices_are_known_by_the_name_that_jax_gives_them(kind, chip):
    assert find_chip(kind) is CHIPS.get(chip)
