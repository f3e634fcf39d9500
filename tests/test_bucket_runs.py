"""Runs whose workdir is in a bucket."""

import json
import os
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest

from zeroseg_jax.checkpoint import find_damage
from zeroseg_jax.checksums import read_sums
from zeroseg_jax.config import to_json
from zeroseg_jax.storage import to_path, walk

ROOT = Path(__file__).parents[1]


def run(config: Path, workdir: str, *more: str) -> subprocess.Popen:
    """A run of two processes."""
    command = [sys.executable, "launch/local.py", "2", "--", "main.py", f"--config={config}", f"--workdir={workdir}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.Popen([*command, *more], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def metrics(workdir: str) -> list[dict]:
    path = to_path(workdir) / "metrics.jsonl"
    names = ("step", "loss")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: line[name] for name in names} for line in lines]


@pytest.mark.end_to_end
def test_a_run_in_a_bucket_stops_and_goes_on_as_one_on_the_disk(bucket, tiny_config, tmp_path):
    """Two processes with stored embeddings; SIGTERM comes when the metrics of the first steps can be read."""
    tiny_config.steps, tiny_config.checkpoint_every, tiny_config.profile_steps = 60, 7, "58:59"
    tiny_config.teacher.source, tiny_config.data.augment = "cache", "center"
    values = tmp_path / "values.json"
    values.write_text(json.dumps(to_json(tiny_config)))
    config = tmp_path / "tiny.py"
    config.write_text(
        "import json\nfrom pathlib import Path\nfrom zeroseg_jax.config import from_json\n\n"
        f"def get_config():\n    return from_json(json.loads(Path({str(values)!r}).read_text()))\n"
    )
    workdir = f"{bucket}/runs/one"
    stopped = run(config, workdir)
    end = time.monotonic() + 300
    while not metrics(workdir) and stopped.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=300)
    assert stopped.returncode == 0, said
    assert "stopped by SIGTERM after step" in said
    before = metrics(workdir)
    assert 0 < len(before) < 60

    resumed = run(config, workdir)
    _, said = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    assert "resumed at step" in said
    local = run(config, str(tmp_path / "local"))
    _, said = local.communicate(timeout=300)
    assert local.returncode == 0, said
    assert metrics(workdir) == metrics(str(tmp_path / "local")) and len(metrics(workdir)) == 60

    names = set(walk(to_path(workdir)))
    assert {"config.json", "metrics.jsonl", "student.json", "teacher_cache/manifest.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert any(fnmatch(name, "profile/plugins/profile/*/*.xplane.pb") for name in names)
    assert ".lock" not in names  # given back
    sums = read_sums(to_path(workdir) / "checkpoints/60/SHA256SUMS")
    from_store = {name for name, value in sums.items() if value.startswith("crc32c:")}
    assert from_store == {name for name in sums if Path(name).name != "_CHECKPOINT_METADATA"} != set()
    checkpoint = to_path(workdir) / "checkpoints/60"
    assert find_damage(checkpoint) == ""
    damaged = next(name for name in sorted(walk(checkpoint)) if name.startswith("state/"))
    (checkpoint / damaged).write_bytes(b"?")
    assert find_damage(checkpoint) == f"the checksum of {damaged} differs"
