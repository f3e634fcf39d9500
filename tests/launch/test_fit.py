"""The parts of launch/fit.py that need no TPU compiler: counting, reading HLO, the verdict."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "launch"))

import fit
from chips import SHAPES, parse_topology
from collectives import Collective, collectives
from flops import matmul_flops
from hlo import parse
from jax.sharding import Mesh
from traffic import main_memory_bytes

from zeroseg_jax import sharding
from zeroseg_jax.chips import CHIPS, find_chip
from zeroseg_jax.config import load_config
from zeroseg_jax.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"

HLO = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%cut (stack: bf16[12,8,4], i: s32[]) -> bf16[8,4] {
  %stack = bf16[12,8,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %piece = bf16[1,8,4]{2,1,0} dynamic-slice(%stack, %i), dynamic_slice_sizes={1,8,4}
  ROOT %flat = bf16[8,4]{1,0} bitcast(%piece)
}

%body (p: (s32[], bf16[12,8,4])) -> (s32[], bf16[12,8,4]) {
  %p = (s32[], bf16[12,8,4]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %all = bf16[12,8,4]{2,1,0} get-tuple-element(%p), index=1
  %x = bf16[8,4]{1,0:T(8,128)S(1)} fusion(%all, %n), kind=kLoop, calls=%cut
  %ar = bf16[8,4]{1,0} all-reduce(%x), channel_id=1, replica_groups={}, to_apply=%add
  ROOT %next = (s32[], bf16[12,8,4]{2,1,0}) tuple(%n, %all)
}

%condition (p: (s32[], bf16[12,8,4])) -> pred[] {
  %p = (s32[], bf16[12,8,4]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %end = s32[] constant(12)
  ROOT %less = pred[] compare(%n, %end), direction=LT
}

ENTRY %main (q: bf16[12,8,4], g: f32[4]) -> f32[16] {
  %q = bf16[12,8,4]{2,1,0} parameter(0)
  %g = f32[4]{0} parameter(1)
  %zero = s32[] constant(0)
  %start = s32[] copy(%zero)
  %t = (s32[], bf16[12,8,4]{2,1,0}) tuple(%start, %q)
  %loop = (s32[], bf16[12,8,4]{2,1,0}) while(%t), condition=%condition, body=%body
  %ag = f32[16]{0} all-gather(%g), channel_id=2, dimensions={0}
  %again = f32[16]{0:S(1)} all-gather(%g), channel_id=2, dimensions={0}
  ROOT %other = f32[8]{0} all-gather(%g), channel_id=2, dimensions={0}
}
"""


def test_collectives_count_loops_and_channels_once():
    expected = {"all-reduce": Collective(12, 12 * 64), "all-gather": Collective(2, 64 + 32)}
    assert collectives(parse(HLO)) == expected
    noted = HLO.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert collectives(parse(noted))["all-reduce"].times == 5


def test_collectives_in_a_loop_of_unknown_length():
    with pytest.raises(ValueError, match="unknown length"):
        collectives(parse(HLO.replace("%start = s32[] copy(%zero)", "%start = s32[] negate(%zero)")))


def test_main_memory_counts_what_is_cut_out_and_not_what_stays_inside_the_chip():
    cut = 12 * (64 + 4)  # a slice of the stack and the index; its result is in S(1)
    reduced = 12 * 64  # read inside the chip, written outside
    gathers, counter = (16 + 64) + 16 + (16 + 32), 4 + 4  # the second one's result is in S(1)
    assert main_memory_bytes(parse(HLO)) == cut + reduced + gathers + counter


def test_main_memory_leaves_out_a_collective_behind_other_work():
    hlo = """HloModule step

%async_collective_fusion.1 (part: bf16[4], whole: bf16[16], x: f32[8]) -> (f32[8], bf16[4], bf16[16], bf16[16]) {
  %part = bf16[4]{0} parameter(0)
  %whole = bf16[16]{0} parameter(1)
  %x = f32[8]{0} parameter(2)
  %gathered = bf16[16]{0} all-gather(%part), channel_id=1, dimensions={0}
  %twice = f32[8]{0} add(%x, %x)
  ROOT %all = (f32[8]{0}, bf16[4]{0}, bf16[16]{0}, bf16[16]{0}) tuple(%twice, %part, %whole, %gathered)
}

ENTRY %main (part: bf16[4], whole: bf16[16], x: f32[8]) -> (f32[8], bf16[4], bf16[16], bf16[16]) {
  %part = bf16[4]{0} parameter(0)
  %whole = bf16[16]{0} parameter(1)
  %x = f32[8]{0} parameter(2)
  ROOT %f = (f32[8]{0}, bf16[4]{0}, bf16[16]{0}, bf16[16]{0}) fusion(%part, %whole, %x), kind=kLoop, ALIASES
}
"""
    aliases = "output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {}), {3}: (1, {})}, calls=%async_collective_fusion.1"
    assert main_memory_bytes(parse(hlo.replace("ALIASES", aliases))) == 8 * 4 + 8 * 4


def test_a_compiled_program_is_read():
    def loss(weights, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0].sum()

    compiled = jax.jit(loss).lower(jnp.zeros((5, 8, 8)), jnp.zeros((3, 8))).compile()
    program = parse(compiled.as_text())
    assert [times for i, _, times in program.run() if i.opcode == "while"] == [1]
    assert 5 in {times for _, _, times in program.run()}
    assert main_memory_bytes(program) >= 5 * 8 * 8 * 4


def test_flops_of_a_scan_and_its_gradient():
    def loss(weights, x):
        return jax.lax.scan(lambda h, w: (h @ w, None), x, weights)[0].sum()

    weights, x = jnp.zeros((5, 8, 8)), jnp.zeros((3, 8))
    one = 2 * 3 * 8 * 8
    assert matmul_flops(jax.make_jaxpr(loss)(weights, x)) == 5 * one
    assert matmul_flops(jax.make_jaxpr(jax.grad(loss))(weights, x)) == 3 * 5 * one


@pytest.mark.parametrize("name", ["vitb16", "vitb16_online"])
def test_the_step_has_the_flops_of_the_model(name):
    config = load_config(CONFIGS / f"{name}.py")
    config.batch_size, config.views.local_size = 16, 112
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    traced, parameters = fit.trace_step(config, mesh)
    assert 180e6 < parameters < 190e6
    assert matmul_flops(traced.jaxpr) / 16 / fit.flops_of_image(config) == pytest.approx(1, abs=1e-4)


def test_slices():
    assert parse_topology("v5e:4x4")[1:] == ("v5e", (4, 4), CHIPS["v5e"], 16)
    for kind, shapes in SHAPES.items():
        counts = [parse_topology(f"{kind}:{shape}").chips for shape in shapes]
        assert counts == sorted(counts) and counts[0] == 4 and counts[-1] == 256
    assert parse_topology("h100:2x8").chip.network < parse_topology("h100:1x8").chip.network
    for wrong, told in {"v5e": "v5e has", "v5e:3x5": "v5e has 2x2, 2x4", "v9:4x4": "did you mean v5e:4x4"}.items():
        with pytest.raises(InputError, match=told):
            parse_topology(wrong)


def test_the_verdict_names_the_cheapest_change():
    online = CONFIGS / "vitb16_online.py"
    assert fit.verdict(1e9, load_config(online), CHIPS["v5e"], 64) == {"verdict": "fits", "change": ""}
    changes, overrides = [], [("teacher.chunk", "0")]
    for _ in range(12):
        told = fit.verdict(1e12, load_config(online, overrides), CHIPS["v5e"], 64)
        assert told["verdict"] == "too large"
        changes.append(told["change"].replace("--config.", ""))
        overrides += [tuple(change.split("=")) for change in changes[-1].split()]
    assert changes[:3] == ["teacher.chunk=2", "optimizer.accumulate=2", "optimizer.accumulate=4"]
    assert changes[3:5] == ["student.remat=dots", "student.remat=full"]
    assert changes[5:9] == [f"optimizer.accumulate={parts}" for parts in (8, 16, 32, 64)]
    assert changes[9:] == ["mesh.data=1 mesh.fsdp=-1", "batch_size=2048", "batch_size=1024"]


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("cpu", ""),
    ],
)
def test_devices_are_known_by_the_name_that_jax_gives_them(kind, chip):
    assert find_chip(kind) is CHIPS.get(chip)
