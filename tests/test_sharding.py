"""The table of shardings, and training on eight simulated devices: equal results on any mesh, few collectives."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from zeroseg_jax import sharding
from zeroseg_jax.config import to_json
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.student import Student
from zeroseg_jax.models.student_config import make_student_config

MESH = AbstractMesh((2, 2, 2), sharding.AXES)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("encoder/transformer/blocks/attention/query/kernel", (3, 16, 16), P(None, "fsdp", "tensor")),
        ("encoder/transformer/blocks/attention/query/bias", (3, 16), P(None, "tensor")),
        ("encoder/transformer/blocks/attention/out/kernel", (3, 16, 16), P(None, "tensor", "fsdp")),
        ("encoder/transformer/blocks/mlp/fc2/kernel", (3, 64, 16), P(None, "tensor", "fsdp")),
        ("encoder/transformer/blocks/norm1/scale", (3, 16), P(None, None)),
        ("1/0/mu/projection/fc1/kernel", (16, 32), P("fsdp", "tensor")),
        ("encoder/patch_embedding/kernel", (48, 16), P("fsdp", None)),
        ("encoder/patch_embedding/kernel", (27, 16), P(None, None)),
        ("stages/0/group_tokens", (8, 16), P(None, None)),
        ("step", (), P()),
    ],
)
def test_the_table(path, shape, expected):
    assert sharding.spec(path, shape, MESH) == expected


def test_every_matrix_of_the_student_is_split(tiny_config):
    config = make_student_config(tiny_config, 8)
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Student(config, rngs=nnx.Rngs(0)))))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert "fsdp" in sharding.spec(name, leaf.shape, MESH) or not name.endswith("kernel"), name


def test_meshes_and_batches_that_do_not_fit_are_told():
    devices = jax.device_count()
    assert sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}).shape["data"] == devices
    for sizes in ((devices + 1, 1, 1), (-1, -1, 1), (0, 1, 1), (-2, 1, 1)):
        with pytest.raises(InputError, match=f"does not fit {devices} devices; set one axis to -1"):
            sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))
    with pytest.raises(InputError, match=r"a batch of 5 images does not split over 4 devices .* 4 would"):
        sharding.check_batch(5, MESH)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_sums_over_devices_are_made_in_the_dtype_asked_for(dtype):
    def traced(mesh):
        total = lambda x: sharding.sum_over_devices(x, P("fsdp"), mesh, dtype)  # noqa: E731
        over = jax.shard_map(total, mesh=mesh, in_specs=P(), out_specs=P("fsdp"), check_vma=False)
        program = jax.make_jaxpr(over)(jnp.ones((4, 3)))
        assert [x.dtype for x in program.out_avals] == [jnp.float32]
        return [
            equation
            for equation in program.eqns[0].params["jaxpr"].eqns
            if equation.primitive.name != "convert_element_type"
        ]

    sums = traced(MESH)
    assert [equation.primitive.name for equation in sums] == ["reduce_scatter", "psum"]
    assert {equation.outvars[0].aval.dtype for equation in sums} == {jnp.dtype(dtype)}
    assert not traced(AbstractMesh((1, 1, 2), sharding.AXES))


EIGHT_DEVICES = """
import collections, json, math, re, sys
import jax, numpy as np
from jax.sharding import Mesh
from zeroseg_jax import sharding
from zeroseg_jax.checkpoint import Checkpoints
from zeroseg_jax.config import from_json
from zeroseg_jax.distill.plan import make_plan
from zeroseg_jax.distill.teacher import load_teacher

config = from_json(json.load(open(sys.argv[1])))
rng = np.random.default_rng(0)
batches = [{"image": rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)} for _ in range(3)]
KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"

def moved(program):
    numbers, program = collections.Counter(), program[program.index("ENTRY"):]  # in no loop
    for shapes, kind in re.findall(rf"(?m)^ *(?:ROOT )?%[^ ]+ = (.*?) ({KINDS})(?:-start)?[(]", program):
        for shape in re.findall("[a-z0-9]+[[]([0-9,]*)[]]", shapes):
            numbers[kind] += math.prod(int(n) for n in shape.split(",") if n)
    return numbers

def run(mesh, restored=False, saved=False):
    config.optimizer.accumulate = 2 if mesh.shape["tensor"] == 1 < mesh.size else 1
    teacher = load_teacher(config)
    plan = make_plan(config, teacher, mesh)
    frozen = jax.device_put(teacher.params, sharding.replicated(mesh))
    if restored:
        with Checkpoints(sys.argv[2]) as checkpoints:
            state, position = checkpoints.restore(checkpoints.latest, plan.state)
        assert position == {"next_index": 16}
    else:
        state = jax.jit(plan.initial_state, out_shardings=plan.shardings)()
    step, losses = None, []
    for i, batch in enumerate(batches):
        batch = sharding.to_devices(batch, mesh)
        step = step or plan.train_step.lower(state, batch, frozen).compile()
        if i or not restored:
            state, metrics = step(state, batch, frozen)
            losses.append(float(metrics["loss"]))
        if saved and i == 0:
            with Checkpoints(sys.argv[2]) as checkpoints:
                checkpoints.save(1, state, {"next_index": 16})
                checkpoints.wait()
    kernel = state["params"]["projection"]["fc1"]["kernel"]
    moment = state["opt"][1][0].mu["projection"]["fc1"]["kernel"]
    shards = [kernel.addressable_shards[0].data.shape, moment.addressable_shards[0].data.shape]
    params = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
              for path, leaf in jax.tree_util.tree_leaves_with_path(state["params"])}
    return losses, params, {"moved": moved(step.as_text()), "shards": shards}

# one device; a bias that shifts all the logits of a softmax, or all that a norm centres, has no gradient but rounding
# errors, which Adam follows
losses, params, _ = run(Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES))
ZERO = "attention/key/bias|assignment/query/bias|grouping/mixer/mlp/fc2/bias"
compared = [name for name in params if not re.search(ZERO, name)]
report = {"parameters": sum(leaf.size for leaf in params.values()), "left out": sorted(params.keys() - compared)}
for sizes in map(tuple, json.loads(sys.argv[3])):
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes)))
    # the run on (2, 2, 2) goes on from a checkpoint of the data-parallel one
    own, found, about = run(mesh, restored=sizes == (2, 2, 2), saved=sizes == (8, 1, 1))
    np.testing.assert_allclose(own, losses[-len(own):], rtol=1e-5, err_msg=str(sizes))
    for name in compared:
        np.testing.assert_allclose(found[name], params[name], rtol=0, atol=1e-5, err_msg=f"{sizes} {name}")
    report["x".join(map(str, sizes))] = about
print(json.dumps(report))
"""


FEW = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]
OTHERS = [(4, 2, 1), (4, 1, 2), (2, 4, 1), (2, 1, 4), (1, 4, 2), (1, 2, 4), (1, 1, 8)]


@pytest.mark.end_to_end
@pytest.mark.parametrize("meshes", [FEW, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["few", "others"])
def test_a_mesh_of_eight_devices_trains_as_one_device_does(meshes, tiny_config, tmp_path):
    config = tiny_config
    config.teacher.chunk = 1
    config.optimizer.lr = 6e-4  # the recipe's; Adam magnifies rounding errors of small gradients in proportion to it
    config.loss.mae, config.student.decoder_depth = 0.0, 0  # compiles faster
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    command = [sys.executable, "-c", EIGHT_DEVICES, tmp_path / "config.json", tmp_path / "run", json.dumps(meshes)]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    child = subprocess.run(command, capture_output=True, text=True, timeout=580, env=environment)
    assert child.returncode == 0, child.stderr
    report = json.loads(child.stdout.splitlines()[-1])
    parameters = report.pop("parameters")
    assert 0 < len(report.pop("left out")) < 10
    assert len(report) == len(meshes)
    if meshes is OTHERS:
        return
    # data parallelism sums the gradients, and nothing else moves
    assert report["8x1x1"]["moved"] == {"all-reduce": pytest.approx(parameters, rel=0.01)}
    # "fsdp" also gathers the parameters once, but moves no activation
    moved = report["1x8x1"]["moved"]
    assert set(moved) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert sum(moved.values()) <= 2.1 * parameters
    assert report["8x1x1"]["shards"] == [[16, 32]] * 2
    assert report["1x8x1"]["shards"] == [[2, 32]] * 2
    assert report["2x2x2"]["shards"] == [[8, 16]] * 2


def test_who_reads_which_part(monkeypatch):
    """Two processes with devices of their own read halves; processes that share images over "tensor" read the same."""

    @dataclasses.dataclass(frozen=True)
    class Device:
        process_index: int
        id: int

    def parts(owners: list[int], sizes: tuple[int, int, int]) -> list[tuple[int, int]]:
        devices = np.array([Device(owner, i) for i, owner in enumerate(owners)])
        mesh, result = jax.sharding.Mesh(devices.reshape(sizes), sharding.AXES), []
        for process in range(max(owners) + 1):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            result.append(sharding.process_part(mesh))
        return result

    assert parts([0, 0, 1, 1], (4, 1, 1)) == [(0, 2), (1, 2)]
    assert parts([0, 0, 1, 1], (1, 2, 2)) == [(0, 2), (1, 2)]
    assert parts([0, 1, 0, 1], (2, 2, 1)) == [(0, 2), (1, 2)]  # not neighbours
    assert parts([0, 0, 1, 1], (1, 1, 4)) == [(0, 1), (0, 1)]
    assert parts([0, 1, 2, 3], (2, 1, 2)) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    with pytest.raises(InputError, match=r"mesh.tensor=2 splits images between processes"):
        parts([0, 0, 0, 1, 1, 1], (3, 1, 2))
