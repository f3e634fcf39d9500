"""Real processes on this machine: equal results for any number of them, stopping by SIGTERM, and peers that die."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train import metrics, saved

import zeroseg_jax.train
from zeroseg_jax.config import from_json, to_json
from zeroseg_jax.log import RunLog
from zeroseg_jax.preemption import Preempted
from zeroseg_jax.train import train

ROOT = Path(__file__).parents[1]
STEPS, STOP = 10, 4
"""Of the runs below, and the step at whose end SIGTERM comes to one process."""


def local(count: int, *command: str | Path, devices: int = 1, **options) -> subprocess.CompletedProcess:
    """`command` in `count` processes."""
    start = [sys.executable, "launch/local.py", str(count), f"--devices={devices}", "--", *command]
    # only the first process would find what it compiles in the cache, and the others would come too late
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.run(start, capture_output=True, text=True, cwd=ROOT, timeout=400, env=environment, **options)


@pytest.fixture(scope="module")
def config_path(make_tiny_config, tmp_path_factory) -> Path:
    """The JSON of a config with a batch for eight devices, cheap to compile."""
    config = make_tiny_config()
    config.steps, config.batch_size, config.checkpoint_every = STEPS, 8, STEPS
    config.loss.mae, config.student.decoder_depth = 0.0, 0
    config.optimizer.lr = 6e-4  # the recipe's; Adam magnifies rounding errors of small gradients in proportion to it
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(to_json(config)))
    return path


def read(path: Path):
    return from_json(json.loads(path.read_text()))


def once(function: Callable) -> Callable:
    results: list[Any] = []

    def call(*arguments: Any) -> Any:
        results.extend([] if results else [function(*arguments)])
        return results[0]

    return call


@pytest.fixture(scope="module", autouse=True)
def one_step_for_all_runs():
    """The runs in this process have the same config, so that they can share what takes longest to trace."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_plan", "load_teacher"):
            patch.setattr(f"zeroseg_jax.train.{name}", once(getattr(zeroseg_jax.train, name)))
        yield


@pytest.fixture(scope="module")
def one_process(config_path, tmp_path_factory) -> Path:
    """The workdir of the run on one device."""
    workdir = tmp_path_factory.mktemp("one")
    train(read(config_path), workdir)
    return workdir


RUNS = (
    "from collections.abc import Callable\nfrom typing import Any\n"
    + inspect.getsource(once)
    + """
import json, os, shutil, signal, sys, time
import traceback
from absl import flags
from pathlib import Path

for name in ("coordinator", "num_processes", "process_id"):
    flags.DEFINE_string(name, None, "")
arguments = flags.FLAGS(sys.argv)
from zeroseg_jax import preemption, processes
processes.join(flags.FLAGS.coordinator, int(flags.FLAGS.num_processes), int(flags.FLAGS.process_id))

import jax
import zeroseg_jax.train
from jax.experimental import multihost_utils
from zeroseg_jax.config import from_json
from zeroseg_jax.log import RunLog

zeroseg_jax.train.make_plan = once(zeroseg_jax.train.make_plan)
zeroseg_jax.train.load_teacher = once(zeroseg_jax.train.load_teacher)
write = RunLog.write

def write_and_signal(self, step, metrics):
    write(self, step, metrics)
    if jax.process_index() == 1 and step == int(arguments[3]):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)  # JAX looks for the signal once a second, and these steps take less

config, folder = from_json(json.loads(Path(arguments[1]).read_text())), Path(arguments[2])
config.mesh.update({"data": 1, "fsdp": 2, "tensor": 2})
try:
    zeroseg_jax.train.train(config, folder / "whole")
    RunLog.write = write_and_signal
    try:
        zeroseg_jax.train.train(config, folder / "stopped")
    except preemption.Preempted as error:
        print(error)
    if jax.process_index() == 0:
        shutil.copytree(folder / "stopped", folder / "resumed")
    multihost_utils.sync_global_devices("copied")
    zeroseg_jax.train.train(config, folder / "resumed")
except Exception:
    processes.exit_process(traceback.format_exc(), 1)
"""
)


@pytest.fixture(scope="module")
def two_processes(config_path, tmp_path_factory) -> Path:
    """Runs on twice two devices: "whole", "stopped" by SIGTERM to one process of the two, and "resumed" from that."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "runs.py").write_text(RUNS)
    done = local(2, folder / "runs.py", config_path, folder, str(STOP), devices=2)
    assert done.returncode == 0, done.stderr
    told = sorted(line for line in done.stdout.splitlines() if "SIGTERM" in line)
    assert [line.split(" after ")[0] for line in told] == ["[0] stopped by SIGTERM", "[1] stopped by SIGTERM"]
    assert told[0][3:] == told[1][3:]  # at the same step
    assert "[0] train" in done.stderr and "[1] train" not in done.stderr
    return folder


@pytest.mark.end_to_end
def test_two_processes_train_what_one_does(one_process, two_processes):
    ours, theirs = metrics(two_processes / "whole"), metrics(one_process)
    assert len(ours) == len(theirs) == STEPS
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)
    (state, position), (expected, expected_position) = (
        saved(folder, STEPS) for folder in (two_processes / "whole", one_process)
    )
    assert position == expected_position == {"next_index": STEPS * 8}
    for name, value in expected.items():
        if not name.endswith("['bias']"):  # of keys and the like have no gradient, which Adam takes for a direction
            np.testing.assert_allclose(state[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.end_to_end
def test_a_stopped_run_goes_on_bit_for_bit(two_processes):
    assert metrics(two_processes / "resumed") == metrics(two_processes / "whole")
    (state, position), (expected, expected_position) = (
        saved(two_processes / name, STEPS) for name in ("resumed", "whole")
    )
    assert position == expected_position
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


@pytest.mark.slow
def test_four_processes_go_on_where_two_with_another_mesh_have_stopped(
    one_process, two_processes, config_path, tmp_path
):
    shutil.copytree(two_processes / "stopped", tmp_path / "run")
    (tmp_path / "tiny.py").write_text(
        "import json\nfrom pathlib import Path\nfrom zeroseg_jax.config import from_json\n\n"
        f"def get_config():\n    return from_json(json.loads(Path({str(config_path)!r}).read_text()))\n"
    )
    where = [f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / 'run'}"]
    done = local(4, "main.py", *where, "--config.mesh.data=2", "--config.mesh.fsdp=2")
    assert done.returncode == 0, done.stderr
    (resumed,) = [line for line in done.stderr.splitlines() if "resumed" in line]
    assert resumed.startswith("[0] process 0: resumed at step ")
    assert not [line for line in done.stderr.splitlines() if "train 1" in line and not line.startswith("[0]")]
    ours, theirs = metrics(tmp_path / "run"), metrics(one_process)
    assert len(ours) == len(theirs) == STEPS
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)


# the step that runs when the signal comes, or the next: another thread takes it
AFTER_STOP = f"stopped by SIGTERM after step ({STOP + 1}|{STOP + 2}) of {STEPS}, which is saved"


@pytest.mark.end_to_end
def test_sigterm_stops_one_process_and_it_goes_on_bit_for_bit(config_path, one_process, tmp_path, monkeypatch):
    write = RunLog.write

    def write_and_signal(self, step, metrics):
        write(self, step, metrics)
        if step == STOP:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "write", write_and_signal)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=AFTER_STOP):
        train(read(config_path), tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) is handler
    monkeypatch.undo()
    train(read(config_path), tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(one_process)
    (state, _), (expected, _) = (saved(folder, STEPS) for folder in (tmp_path / "run", one_process))
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


ELASTIC = """
import sys
import jax
import numpy as np
from zeroseg_jax import sharding
from zeroseg_jax.checkpoint import Checkpoints

def place(sizes):
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return sharding.state_shardings(values, jax.sharding.Mesh(devices, sharding.AXES))

rng = np.random.default_rng(0)
attention = {"query": {"kernel": rng.normal(size=(3, 16, 16))}, "out": {"kernel": rng.normal(size=(3, 16, 16))}}
values = {"params": {"attention": attention, "norm": {"scale": rng.normal(size=5)}}, "step": np.int32(7)}
values = jax.tree.map(lambda x: np.asarray(x, x.dtype if x.dtype == np.int32 else np.float32), values)
with Checkpoints(sys.argv[1]) as checkpoints:
    for step, sizes in enumerate([(1, 8, 1), (2, 2, 2)], start=1):
        checkpoints.save(step, jax.device_put(values, place(sizes)), {"next_index": 56})
        checkpoints.wait()
        fewer = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 4, 1), (2, 1, 2)]
        for other in [*fewer, (8, 1, 1), (1, 2, 4)]:
            shardings = place(other)
            shapes = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), values, shardings)
            state, position = checkpoints.restore(step, shapes)
            assert position == {"next_index": 56}
            jax.tree.map(np.testing.assert_array_equal, state, values)
            assert jax.tree.map(lambda a: a.sharding, state) == shardings
"""


@pytest.mark.end_to_end
def test_what_eight_devices_saved_restores_on_any_number_and_factorisation(tmp_path):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ELASTIC, tmp_path]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert child.returncode == 0, child.stderr


PEERS = """
import os, signal, sys, time
import main
from absl import app
from zeroseg_jax.errors import InputError
from zeroseg_jax.preemption import Preempted

def run(*_):
    main.join_processes(main.COORDINATOR.value, main.NUM_PROCESSES.value, main.PROCESS_ID.value)
    import jax
    from jax.experimental import multihost_utils
    for step in range(10_000):
        multihost_utils.process_allgather(jax.numpy.ones(3))
        if step == 5 and jax.process_index() in {where}:
            {event}
        time.sleep(0.05)

main.run = run
app.run(main.main, flags_parser=main.parse_flags)
"""


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("event", "status", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, ""),
        (
            "raise InputError('there is no folder /a; name another')",
            2,
            "[1] process 1 of 2: there is no folder /a; name",
        ),
        ("raise RuntimeError('out of memory')", 1, "[1] process 1 of 2: Traceback"),
    ],
)
def test_a_dead_peer_ends_the_others_within_a_minute(tmp_path, event, status, told):
    (tmp_path / "peers.py").write_text(PEERS.format(event=event, where=[1]))
    start = time.monotonic()
    done = local(2, tmp_path / "peers.py", "--config=none")
    assert time.monotonic() - start < 60
    assert done.returncode == status
    assert told in done.stderr
    assert f"process 1 ended with status {-9 if status == 137 else status}; the others end too" in done.stderr
    others = [line for line in done.stderr.splitlines() if line.startswith("[0]")]
    assert any("another process ended first" in line or "another task died" in line for line in others), done.stderr


@pytest.mark.end_to_end
def test_all_processes_that_are_preempted_end_with_the_status_asked_for(tmp_path):
    (tmp_path / "peers.py").write_text(PEERS.format(event="raise Preempted('stopped after step 5')", where=[0, 1]))
    done = local(2, tmp_path / "peers.py", "--config=none", "--preempted_status=75")
    assert done.returncode == 75
    told = [line for line in done.stderr.splitlines() if "stopped" in line]
    assert told == ["[0] stopped after step 5; the same command resumes it"]


ALONE = """
from zeroseg_jax import processes
from zeroseg_jax.errors import InputError

for arguments in ((), ("localhost:1234",), ("localhost:1234", 2, 2)):
    try:
        processes.join(*arguments)
    except InputError as error:
        print(error)
"""


def test_a_laptop_joins_nobody():
    known = ("JAX_", "SLURM_", "KUBERNETES_", "TPU_", "OMPI_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(known)}
    child = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT)}
    )
    told = child.stdout.splitlines()
    assert len(told) == 3, child.stderr
    assert told[0].startswith("JAX finds no TPU pod, SLURM step or Kubernetes job around this process")
    assert "--num_processes and --process_id missing" in told[1]
    assert "--process_id=2 is not one of 0 to 1" in told[2]
