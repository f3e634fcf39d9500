"""The parts of launch/fit.py that need no TPU compiler: counting, reading HLO, the verdict."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "launch"))

from chips import CHIPS, parse_topology
from collectives import Traffic, collectives
from flops import matmul_flops

from zeroseg_jax.errors import InputError

HLO = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %ar = bf16[8,4]{1,0} all-reduce(%x), channel_id=1, replica_groups={}, to_apply=%add
}

%condition (p: (s32[], bf16[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %loop = (s32[], bf16[8,4]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %ag = f32[16]{0} all-gather(%p), channel_id=2, dimensions={0}
  %again = f32[16]{0} all-gather(%p), channel_id=2, dimensions={0}
}
"""


def test_collectives_count_loops_and_channels_once():
    assert collectives(HLO) == {"all-reduce": Traffic(12, 12 * 64), "all-gather": Traffic(1, 64)}


def test_collectives_in_a_loop_of_unknown_length():
    with pytest.raises(ValueError, match="unknown length"):
        collectives(HLO.replace('"known_trip_count":{"n":"12"}', ""))


def test_flops_of_a_scan_and_its_gradient():
    def loss(weights, x):
        return jax.lax.scan(lambda h, w: (h @ w, None), x, weights)[0].sum()

    weights, x = jnp.zeros((5, 8, 8)), jnp.zeros((3, 8))
    one = 2 * 3 * 8 * 8
    assert matmul_flops(jax.make_jaxpr(loss)(weights, x)) == 5 * one
    assert matmul_flops(jax.make_jaxpr(jax.grad(loss))(weights, x)) == 3 * 5 * one


def test_topologies():
    assert parse_topology("v5e:4x4") == ("v5e", CHIPS["v5e"], 16)
    assert parse_topology("v5p:2x2x4")[2] == 16
    for wrong in ("v5e", "v5e:1x1", "v9:4x4", "v5p:4x4", "v6e:32x32", "v5e:0x4"):
        with pytest.raises(InputError, match="v5e:4x4"):
            parse_topology(wrong)
