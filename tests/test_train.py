"""Training runs from end to end: what they leave behind, resuming after SIGKILL, the NaN guard, the cached teacher."""

import json
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zeroseg_jax.checkpoint import Checkpoints, load_student
from zeroseg_jax.config import set_key, to_json
from zeroseg_jax.distill import plan
from zeroseg_jax.errors import InputError, NotFiniteError
from zeroseg_jax.log import RunLog
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.train import train


def metrics(workdir) -> list[dict]:
    """The lines of metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = {"step_seconds", "images_per_second", "data_wait", "mfu"}
    assert all(times < line.keys() for line in lines[1:2])
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


def saved(workdir, step: int):
    """Everything that the checkpoint of a step holds, as numpy arrays by path, and the data position."""
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.latest == step
        metadata = checkpoints._checkpointer.metadata(step).metadata
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        place = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), metadata)
        state, position = checkpoints.restore(step, place)
    return {
        jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }, position


class WandbError(Exception):
    """Stands in for wandb.Error."""


@pytest.fixture
def wandb(monkeypatch) -> list:
    """A stand-in for wandb in its place; what it is called with."""
    calls: list = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda exit_code: calls.append(exit_code)
    )
    module = SimpleNamespace(init=lambda **options: (calls.append(options), run)[1], Error=WandbError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


@pytest.mark.end_to_end
def test_a_run_leaves_what_it_should(tiny_config, tmp_path, caplog, wandb):
    config = tiny_config
    config.checkpoint_every, config.profile_steps, config.wandb = 7, "4:5", "zeroseg"
    caplog.set_level("INFO")
    assert train(config, tmp_path / "run") is None
    assert list((tmp_path / "run/profile").glob("plugins/profile/*/*.xplane.pb"))
    assert "17 steps in 0:0" in caplog.text and "goodput" in caplog.text
    assert json.loads((tmp_path / "run/config.json").read_text()) == to_json(config)
    assert list((tmp_path / "run").glob("events.out.tfevents*"))
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["14", "17"]
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 18))
    assert {"loss", "global", "match", "mae", "ground", "grad_norm", "param_norm", "lr"} < set(lines[0])
    assert [line["epoch"] for line in lines] == [step * 4 / 20 for step in range(1, 18)]
    assert (wandb[0]["project"], wandb[0]["name"], wandb[0]["resume"]) == ("zeroseg", "run", "allow")
    assert wandb[0]["config"] == to_json(config) and wandb[-1] == 0
    assert [step for step, _ in wandb[1:-1]] == list(range(1, 18))
    assert {"step": 1} | wandb[1][1] == lines[0] and "step_seconds" in wandb[2][1]
    first, last = (np.mean([line["loss"] for line in part]) for part in (lines[:5], lines[-5:]))
    assert last < 0.9 * first

    student, read = load_student(tmp_path / "run")
    assert read.steps == 17 and read.views.grids == (1, 2)
    assert jax.jit(lambda x: student(x).segments)(jnp.zeros((2, 16, 24, 3))).shape == (2, 4, 8)

    config.profile_steps = ""
    train(config, tmp_path / "run")  # complete: nothing is left to do
    assert metrics(tmp_path / "run") == lines

    # the newest checkpoint is damaged: the one before it is loaded, and the run goes on from there to the same end
    last = tmp_path / "run/checkpoints/17"
    content = bytearray((last / "state/manifest.ocdbt").read_bytes())
    content[40] ^= 4
    (last / "state/manifest.ocdbt").write_bytes(content)
    load_student(tmp_path / "run")
    assert "the checkpoint of step 17 in" in caplog.text and "step 14 is the newest sound checkpoint" in caplog.text
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write(b'[3]\n7\n{"step": "x"}\n\xff\xfe\n{"step": 9')
    train(config, tmp_path / "run")
    assert metrics(tmp_path / "run") == lines
    assert sorted(path.name for path in last.parent.iterdir()) == ["14", "17", "damaged-17"]


@pytest.mark.end_to_end
def test_an_encoder_from_the_teacher_starts_with_all_its_digits(tiny_config, tmp_path):
    tiny_config.student.encoder, tiny_config.dtype = "clip", "bfloat16"  # the teacher's own kernels are bfloat16 then
    tiny_config.steps, tiny_config.optimizer.lr = 1, 0.0
    tiny_config.student.segment_feature = "mask_class_token"
    train(tiny_config, tmp_path)
    student, teacher = load_student(tmp_path)[0], load_clip(tiny_config.teacher.path).model
    for part, expected in (
        (student.encoder.tower, teacher.vision_tower),
        (student.visual_projection, teacher.visual_projection),
    ):
        states = nnx.to_pure_dict(nnx.state(part)), nnx.to_pure_dict(nnx.state(expected))
        jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.end_to_end
@pytest.mark.parametrize("encoder", ["mae", "clip"])
def test_a_student_is_loaded_without_its_teacher(tiny_config, tmp_path, encoder):
    tiny_config.student.encoder, tiny_config.steps = encoder, 1
    tiny_config.teacher.path = str(shutil.copytree(tiny_config.teacher.path, tmp_path / "clip"))
    train(tiny_config, tmp_path / "run")
    expected, _ = load_student(tmp_path / "run")
    sizes = (tmp_path / "run/student.json").read_text()

    (tmp_path / "run/student.json").unlink()  # as runs from before it are: the teacher is asked
    before, _ = load_student(tmp_path / "run")
    assert before.config == expected.config

    (tmp_path / "run/student.json").write_text(sizes)
    shutil.rmtree(tiny_config.teacher.path)
    actual, _ = load_student(tmp_path / "run")
    assert actual.config == expected.config == before.config
    jax.tree.map(np.testing.assert_array_equal, *(nnx.to_pure_dict(nnx.state(s)) for s in (actual, expected)))

    for damaged, told in [("[]", "is damaged"), ("{", "is damaged"), ('{"widths": 3}', "does not describe a student")]:
        (tmp_path / "run/student.json").write_text(damaged)
        with pytest.raises(InputError, match=rf"student\.json {told} .*; put the file back that the run wrote"):
            load_student(tmp_path / "run")
    (tmp_path / "run/student.json").write_text(sizes.replace('"segment_heads": ', '"segment_heads": -'))
    with pytest.raises(InputError, match=r"student\.segment_heads is -"):
        load_student(tmp_path / "run")


@pytest.mark.end_to_end
def test_the_loop_does_not_wait_for_the_device(tiny_config, tmp_path, monkeypatch):
    order, write = [], RunLog.write

    def make_plan(*arguments):
        made = plan.make_plan(*arguments)

        def run(*arguments):
            result = made.train_step(*arguments)
            order.append("step")
            jax.config.update("jax_transfer_guard", "disallow")  # but for explicit transfers, once it is compiled
            return result

        return made._replace(train_step=run)

    def told(self, step, metrics):
        order.append(step)
        write(self, step, metrics)

    monkeypatch.setattr("zeroseg_jax.train.make_plan", make_plan)
    monkeypatch.setattr(RunLog, "write", told)
    tiny_config.checkpoint_every = tiny_config.steps
    try:
        train(tiny_config, tmp_path / "run")
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
            jnp.zeros(3) + np.ones(3)  # the guard was on
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    # a step is told of when the next one is under way
    last = tiny_config.steps
    assert order == ["step", *(event for step in range(1, last) for event in ("step", step)), last]


KILLED = """
import json, os, signal, sys
from zeroseg_jax import train
from zeroseg_jax.checkpoint import Checkpoints
from zeroseg_jax.config import from_json
from zeroseg_jax.log import RunLog

def die_after(method, last):
    def wrapped(self, step, *rest):
        method(self, step, *rest)
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)
    return wrapped

Checkpoints.save = die_after(Checkpoints.save, int(sys.argv[3]))
RunLog.write = die_after(RunLog.write, int(sys.argv[4]))
train.train(from_json(json.load(open(sys.argv[1]))), sys.argv[2])
"""


@pytest.mark.end_to_end
def test_a_killed_run_resumes_bit_for_bit(tiny_config, tmp_path):
    config = tiny_config
    train(config, tmp_path / "whole")

    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    # first while a checkpoint is being written in the background, then between checkpoints
    for last_save, last_log in ((10, 99), (99, 12)):
        command = [
            sys.executable,
            "-c",
            KILLED,
            tmp_path / "config.json",
            tmp_path / "killed",
            str(last_save),
            str(last_log),
        ]
        child = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert child.returncode == -signal.SIGKILL, child.stderr
    assert (tmp_path / "killed/metrics.jsonl").read_text().splitlines()[-1].startswith('{"step": 12,')
    train(config, tmp_path / "killed")

    (state, position), (expected, expected_position) = (saved(tmp_path / name, 17) for name in ("killed", "whole"))
    assert position == expected_position == {"next_index": 17 * 4}
    assert state.keys() == expected.keys() and len(state) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


@pytest.mark.end_to_end
def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(tiny_config, tmp_path, monkeypatch):
    def make_plan(*arguments):
        made = plan.make_plan(*arguments)

        def diverge(state, batch, teacher_params):
            if state["step"] == 11:
                state["params"] = jax.tree.map(lambda x: x * jnp.nan, state["params"])
            return made.train_step(state, batch, teacher_params)

        return made._replace(train_step=diverge)

    monkeypatch.setattr("zeroseg_jax.train.make_plan", make_plan)
    tiny_config.checkpoint_every = 4
    told = r"step 12 is not finite \(.*loss nan.*\); the last good checkpoint is step 8 in .*; lower optimizer.lr"
    with pytest.raises(NotFiniteError, match=told):
        train(tiny_config, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest == 8  # and not 12, which was due
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 12))

    monkeypatch.undo()  # whatever it was, it is mended
    train(tiny_config, tmp_path / "run")
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 18))


@pytest.mark.end_to_end
def test_another_config_is_refused(tiny_config, tmp_path):
    train(tiny_config, tmp_path / "run")
    tiny_config.seed = 1
    with pytest.raises(InputError, match=r"different config: seed \(0 there, 1 now\)"):
        train(tiny_config, tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("teacher.path", "/nowhere/clip", "there is no folder /nowhere/clip"),
        ("data.root", "/nowhere/pictures", "there is no folder /nowhere/pictures"),
        ("image_size", "18", "image_size 18 is not divisible by the patch size 4"),
        ("mesh.data", "3", "does not fit"),
        ("init.mae", "/nowhere/mae", "there is no folder /nowhere/mae"),
    ],
)
def test_bad_input_is_told_in_one_sentence(tiny_config, tmp_path, key, value, told):
    set_key(tiny_config, key, value)
    with pytest.raises(InputError, match=told):
        train(tiny_config, tmp_path / "run")
