"""The workdir of a run: its config, its lock, and what is said where it cannot be written to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zeroseg_jax.config import default_config, flatten, read_config
from zeroseg_jax.errors import InputError
from zeroseg_jax.workdir import check_workdir, hold, open_workdir, write_text


def start(config, workdir: Path) -> None:
    with open_workdir(config, workdir):
        pass


def test_a_workdir_keeps_its_config(tmp_path):
    config = default_config()
    start(config, tmp_path / "run")
    assert flatten(read_config(tmp_path / "run")) == flatten(config)
    (tmp_path / "run/checkpoints/100").mkdir(parents=True)
    start(config, tmp_path / "run")

    harmless = default_config()
    harmless.eval.split = "validation"
    harmless.mesh.fsdp = 2
    harmless.checkpoint_every = 3
    start(harmless, tmp_path / "run")
    assert read_config(tmp_path / "run").checkpoint_every == 3

    other = default_config()
    other.optimizer.lr = 1.0
    with pytest.raises(InputError, match=r"different config: optimizer.lr \(0.0006 there, 1.0 now\); choose another"):
        start(other, tmp_path / "run")

    # a run that failed before its first checkpoint may be mended
    (tmp_path / "run/checkpoints/100").rmdir()
    start(other, tmp_path / "run")
    assert read_config(tmp_path / "run").optimizer.lr == 1.0


HOLDER = """
import sys, time
from pathlib import Path
from zeroseg_jax.workdir import hold
with hold(Path(sys.argv[1]), "trains"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path / "run"`."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_one_process_at_a_time_and_the_first_loses_nothing(holder, tmp_path):
    workdir, config = tmp_path / "run", default_config()
    (workdir / "config.json").write_text("of the first run")
    before = {path: path.read_bytes() for path in workdir.iterdir()}
    told = f"{workdir} is in use by process {holder.pid} on .*, which trains since .*; wait until it has ended"
    for attempt in (lambda: check_workdir(config, workdir), lambda: start(config, workdir)):
        with pytest.raises(InputError, match=told):
            attempt()
    assert {path: path.read_bytes() for path in workdir.iterdir()} == before


def test_a_crash_leaves_no_lock(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert f"process {holder.pid} on" in (tmp_path / "run/.lock").read_text()  # its leftover
    check_workdir(default_config(), tmp_path / "run")
    start(default_config(), tmp_path / "run")


def test_a_lock_is_given_back_also_after_an_error(tmp_path):
    with pytest.raises(KeyError), hold(tmp_path, "trains"):
        with pytest.raises(InputError, match=f"in use by process {os.getpid()}"), hold(tmp_path, "evaluates"):
            pass
        raise KeyError
    with hold(tmp_path, "trains"):
        pass


def test_checking_writes_nothing(tmp_path):
    check_workdir(default_config(), tmp_path / "runs/new")
    assert not list(tmp_path.iterdir())


def test_a_damaged_config_is_told_before_anything_is_written(tmp_path):
    (tmp_path / "checkpoints/3").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is damaged"):
        check_workdir(default_config(), tmp_path)
    assert (tmp_path / "config.json").read_text() == "{"


@pytest.mark.parametrize("name", ["file/run", "file", "a" * 300, "nul\0", "/proc/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_to_is_told(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"):
        start(default_config(), tmp_path / name)
    if name != "/proc/run":  # there only writing tells
        with pytest.raises(InputError, match="cannot be written to"):
            check_workdir(default_config(), tmp_path / name)


def test_text_is_there_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.json", "new" * 10_000 + "\ud800")
    assert (tmp_path / "a.json").read_text() == "old"
