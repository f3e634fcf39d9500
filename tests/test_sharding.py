"""The table of shardings, and training on eight simulated devices: equal results on any mesh, few collectives."""

import json
import os
import subprocess
import sys

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from zeroseg_jax import sharding
from zeroseg_jax.checkpoint import make_student_config
from zeroseg_jax.config import to_json
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.student import Student

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


EIGHT_DEVICES = """
import collections, json, math, re, sys
import jax, numpy as np
from flax import nnx
from zeroseg_jax import sharding
from zeroseg_jax.checkpoint import Checkpoints, make_student_config
from zeroseg_jax.config import from_json
from zeroseg_jax.distill.step import make_optimizer, make_state, make_train_step
from zeroseg_jax.distill.teacher import load_teacher
from zeroseg_jax.models.student import Student

config = from_json(json.load(open(sys.argv[1])))
teacher = load_teacher(config)
make = lambda: Student(make_student_config(config, 8), rngs=nnx.Rngs(0))
graphdef = nnx.graphdef(nnx.eval_shape(make))
optimizer = make_optimizer(config.optimizer, config.steps)
initial = lambda: make_state(nnx.to_pure_dict(nnx.state(make())), optimizer)
report = {}
for name, sizes in {"data": (8, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2)}.items():
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes)))
    abstract = jax.eval_shape(initial)
    shardings = sharding.state_shardings(abstract, mesh)
    if name == "all":  # goes on from a checkpoint of the data-parallel run
        place = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
        with Checkpoints(sys.argv[2]) as checkpoints:
            state, position = checkpoints.restore(checkpoints.latest, place)
        assert position == {"next_index": 16}
    else:
        state = jax.jit(initial, out_shardings=shardings)()
    step = make_train_step(graphdef, optimizer, teacher, config, shardings)
    params = jax.device_put(teacher.params, sharding.replicated(mesh))
    rng, losses, compiled = np.random.default_rng(0), [], None
    for i in range(3):
        batch = sharding.to_devices({"image": rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)}, mesh)
        if name == "data" and i == 1:
            with Checkpoints(sys.argv[2]) as checkpoints:
                checkpoints.save(1, state, {"next_index": 16})
                checkpoints.wait()
        if name == "all" and i == 0:
            losses.append(None)
            continue
        if compiled is None:
            compiled = step.lower(state, batch, params).compile()
        state, metrics = compiled(state, batch, params)
        losses.append(float(metrics["loss"]))
    kernel = state["params"]["projection"]["fc1"]["kernel"]
    moment = state["opt"][1][0].mu["projection"]["fc1"]["kernel"]
    kinds, numbers = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", collections.Counter()
    for shapes, kind in re.findall(rf"(?m)^ *(?:ROOT )?%[^ ]+ = (.*?) ({kinds})(?:-start)?[(]", compiled.as_text()):
        for shape in re.findall("[a-z0-9]+[[]([0-9,]*)[]]", shapes):
            numbers[kind] += math.prod(int(n) for n in shape.split(",") if n)
    report[name] = {
        "losses": losses,
        "numbers": numbers,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state["params"])),
        "shards": [kernel.addressable_shards[0].data.shape, moment.addressable_shards[0].data.shape],
    }
print(json.dumps(report))
"""


def test_eight_devices(tiny_config, tmp_path):
    config = tiny_config
    config.teacher.chunk = 1
    config.student.gumbel = False
    config.loss.mae, config.student.decoder_depth = 0.0, 0  # compiles faster
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    command = [sys.executable, "-c", EIGHT_DEVICES, tmp_path / "config.json", tmp_path / "run"]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    child = subprocess.run(command, capture_output=True, text=True, timeout=580, env=environment)
    assert child.returncode == 0, child.stderr
    report = json.loads(child.stdout.splitlines()[-1])
    losses = report["data"]["losses"]
    assert report["fsdp"]["losses"] == pytest.approx(losses, rel=1e-4)
    assert report["all"]["losses"][1:] == pytest.approx(losses[1:], rel=1e-4)
    # data parallelism sums the gradients, and nothing else moves
    parameters = report["data"]["parameters"]
    assert report["data"]["numbers"] == {"all-reduce": pytest.approx(parameters, rel=0.01)}
    # "fsdp" also gathers the parameters once, but moves no activation
    moved = report["fsdp"]["numbers"]
    assert set(moved) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert sum(moved.values()) <= 2.1 * parameters
    assert report["data"]["shards"] == [[16, 32]] * 2
    assert report["fsdp"]["shards"] == [[2, 32]] * 2
    assert report["all"]["shards"] == [[8, 16]] * 2
