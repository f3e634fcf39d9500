"""Processes that a killed run would leave behind: input workers, drawers of scenes, and those of launch/local.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]

READER = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from zeroseg_jax.data.augment import Augmentation
from zeroseg_jax.data.sources.folder import FolderSource
from zeroseg_jax.data.pipeline import train_iterator

if __name__ == "__main__":
    iterator = train_iterator(
        FolderSource(sys.argv[1], "all"), batch_size=2, augmentation=Augmentation(8), workers=int(sys.argv[2])
    )
    next(iterator)
    print("reading", flush=True)
    while True:
        next(iterator)
"""
DRAWER = """
import sys
from zeroseg_jax.data.scenes import builder

if __name__ == "__main__":
    draws = builder._draw_all("train", 100_000)
    next(draws)
    print("drawing", flush=True)
    for _ in draws:
        pass
"""


def start(*command: str | Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, env=environment, cwd=ROOT)


def descendants(process: subprocess.Popen, count: int) -> list[psutil.Process]:
    """All below `process`, as soon as there are `count` of them."""
    for _ in range(600):
        result = psutil.Process(process.pid).children(recursive=True)
        if len(result) >= count:
            return result
        time.sleep(0.1)
    raise AssertionError(f"only {len(result)} processes")


def ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


@pytest.mark.end_to_end
def test_input_workers_end_with_a_killed_run(pictures, tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    with start(tmp_path / "reader.py", pictures, "3") as run:
        assert run.stdout is not None and run.stdout.readline() == b"reading\n"
        below = descendants(run, 3)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert ended(below)


@pytest.mark.end_to_end
def test_workers_leave_ctrl_c_and_sigterm_to_the_run(pictures, tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    with start(tmp_path / "reader.py", pictures, "2") as run:
        assert run.stdout is not None and run.stdout.readline() == b"reading\n"
        workers = [p for p in descendants(run, 2) if "resource_tracker" not in " ".join(p.cmdline())]
        for worker in workers:
            worker.send_signal(signal.SIGINT)
            worker.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert run.poll() is None and all(worker.is_running() for worker in workers)
        run.kill()
        run.wait()
        assert ended(workers)


@pytest.mark.end_to_end
@pytest.mark.skipif(os.cpu_count() == 1, reason="one core draws by itself")
def test_drawers_of_scenes_end_with_a_killed_run(tmp_path):
    (tmp_path / "drawer.py").write_text(DRAWER)
    with start(tmp_path / "drawer.py") as run:
        assert run.stdout is not None and run.stdout.readline() == b"drawing\n"
        below = descendants(run, 2)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert ended(below)


@pytest.mark.end_to_end
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_what_local_py_started_ends_with_it(pictures, tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    with start("launch/local.py", "2", "--", tmp_path / "reader.py", pictures, "2") as run:
        assert run.stdout is not None
        assert {run.stdout.readline()[4:], run.stdout.readline()[4:]} == {b"reading\n"}
        below = descendants(run, 6)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert ended(below)
