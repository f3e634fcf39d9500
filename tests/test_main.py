"""The command: exit status 2 and one sentence for bad input, results as the last line, modes and tasks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zeroseg_jax.config import to_json

ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "main.py", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=580
    )


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config=configs/demo.py", "--config.stepz=3"], "there is no config key 'stepz'; did you mean 'steps'?"),
        (["--config=configs/demo.py", "--config.image_size=90"], "image_size 90 is not divisible by the patch size 8"),
        (["--config=configs/none.py"], "there is no config file configs/none.py"),
        (["--config=configs/demo.py", "--mode=test"], "flag --mode=test: value should be one of"),
        (
            ["--config=configs/demo.py", "--stepz=3"],
            "Unknown command line flag 'stepz'; did you mean --config.steps=3?",
        ),
        (["--config=configs/demo.py", "--lr"], "did you mean --config.optimizer.lr=VALUE?"),
        (["--config=configs/teacher_demo.py", "--name_step=3"], "did you mean --config.name_steps=3?"),
        (["--config=configs/demo.py", "--wrkdir=runs/a"], "did you mean --workdir?"),
        (["--config=configs/demo.py", "--xyzzy=1"], "docs/config.md the keys that --config.KEY=VALUE sets"),
        (["--config=README.md"], "README.md is not a Python file"),
        (["--config=configs/demo.py", "--config.steps"], "write --config.steps=VALUE"),
        (["--config=configs/eval.py"], "configs/eval.py trains nothing; add --mode=eval"),
        (["--config=configs/demo.py", "--mode=eval"], "/run holds no config.json, so it is not the workdir of a run"),
        (["--config=configs/vitb16.py", "--mode=eval"], "there is nothing to evaluate on; set --config.eval.dataset"),
        ([], "--config is missing"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(arguments, told, tmp_path):
    done = command(*arguments, f"--workdir={tmp_path}/run")
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def config_file(tiny_config, tmp_path) -> Path:
    """A config file with the values of `tiny_config`."""
    path = tmp_path / "tiny.py"
    path.write_text(
        "import json\nfrom zeroseg_jax.config import from_json\n\n"
        f"def get_config():\n    return from_json(json.loads({json.dumps(to_json(tiny_config))!r}))\n"
    )
    return path


@pytest.mark.end_to_end
def test_train_then_eval(config_file, tmp_path):
    where = [f"--config={config_file}", f"--workdir={tmp_path}/run"]
    scenes = ["--config.eval.dataset=scenes/tiny", f"--config.eval.root={tmp_path}/scenes", "--config.eval.limit=4"]
    done = command(*where, *scenes, "--config.eval.baselines=()")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["images"] == 4 and 0 <= results["miou"] <= 1
    assert len(done.stdout.splitlines()[-1]) < 1000
    assert done.stderr.splitlines()[-1] == f"Results: {tmp_path}/run/report.html"
    assert (tmp_path / "run/report.html").exists()
    assert (tmp_path / "run/gallery.png").exists()

    (tmp_path / "run/results.json").unlink()
    again = command(*where, *scenes, "--mode=eval", "--config.eval.baselines=()")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["miou"] == results["miou"]
    whole = json.loads((tmp_path / "run/results.json").read_text())
    assert whole | json.loads(again.stdout.splitlines()[-1]) == whole and {"settings", "baselines"} <= whole.keys()


def test_help_answers_with_status_0():
    done = command("--help")
    assert done.returncode == 0 and not done.stderr
    assert "docs/config.md lists" in done.stdout and "--preempted_status" in done.stdout
    assert len(done.stdout.splitlines()) < 50


@pytest.mark.end_to_end
def test_home_is_no_folder_named_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    done = command("--config=configs/demo.py", "--mode=eval", "--workdir=~/x")
    assert done.returncode == 2 and done.stderr.startswith(f"{tmp_path}/x holds no config.json")
    done = command("--config=configs/demo.py", "--workdir=~nobody_of_that_name/x")
    assert done.returncode == 2 and "names a user whose home is unknown" in done.stderr


def listen_to_ctrl_c() -> None:
    """What a child does first: it would inherit that Ctrl-C is ignored, as it is where the tests run with `&`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.end_to_end
def test_ctrl_c_saves_and_tells_how_to_go_on(config_file, tmp_path):
    where = [f"--config={config_file}", f"--workdir={tmp_path}/run", "--config.data.workers=1"]
    start = [sys.executable, "main.py", *where, "--config.steps=100000", "--config.checkpoint_every=100000"]
    # in a group of its own, all of which a terminal's Ctrl-C reaches
    new_group = {"start_new_session": True, "preexec_fn": listen_to_ctrl_c}
    with subprocess.Popen(start, stderr=subprocess.PIPE, text=True, cwd=ROOT, **new_group) as running:
        metrics = tmp_path / "run/metrics.jsonl"
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
            assert running.poll() is None
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGINT)
        _, told = running.communicate(timeout=120)
    assert running.returncode == 130 and "Traceback" not in told
    assert "saving after this step, then stopping; Ctrl-C again ends at once" in told
    last = told.splitlines()[-1]
    assert re.fullmatch(
        r"stopped by Ctrl-C after step \d+ of 100000, which is saved; the same command resumes it", last
    )
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    assert int(saved.name) == int(last.split()[5])


IMPATIENT = """
import time
from zeroseg_jax.preemption import Preemption
with Preemption():
    print("ready", flush=True)
    time.sleep(300)
"""


def test_a_second_ctrl_c_ends_at_once():
    command = [sys.executable, "-c", IMPATIENT]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": listen_to_ctrl_c}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as running:
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGINT)
        assert running.stderr.readline() == "\n" and "saving after this step" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=20) == 130


def test_a_run_that_diverged_has_a_status_of_its_own():
    """So launchers can tell it from a machine that was lost, and do not start it again."""
    code = """
import sys, main
from absl import app
from zeroseg_jax.errors import NotFiniteError
def run(*_):
    raise NotFiniteError("step 3 is not finite")
main.run, sys.argv = run, ["main.py", "--config=configs/demo.py"]
app.run(main.main, flags_parser=main.parse_flags)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "step 3 is not finite\n")
