"""What docs/performance.md promises of the compiled step, held against the TPU compiler, one at a time; half an hour.

`pip install 'jax[tpu]' && pytest -m aot -n 0`
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import moved_bytes

ROOT = Path(__file__).parents[2]
GIB = 2**30
PARTS = ("student.remat=dots", "optimizer.accumulate=16")
"""How 256 images a chip compile soonest."""

pytestmark = [
    pytest.mark.aot,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]


def fitted(config: str, topology: str, *overrides: str, program: Path | None = None) -> dict:
    """What launch/fit.py prints; the compiled program goes to a file."""
    command = [sys.executable, ROOT / "launch/fit.py", f"--config={ROOT / 'configs' / config}.py"]
    command += [f"--topology={topology}", "--json", *(f"--config.{override}" for override in overrides)]
    command += [f"--program={program}"] if program else []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def bytes_per_parameter(result: dict, program: Path) -> dict[str, float]:
    return {kind: size / result["parameters"] for kind, size in moved_bytes(program.read_text()).items()}


@pytest.mark.parametrize(
    ("topology", "remat", "accumulate", "peak"),
    [
        ("v5e:4x4", "dots", 1, 11.5),
        ("v5e:4x4", "dots", 16, 5.0),
        ("v5e:8x8", "none", 1, 12.0),
        ("v5e:8x8", "none", 4, 5.0),
    ],
)
def test_data_parallel(topology, remat, accumulate, peak, tmp_path):
    program, changes = tmp_path / "program", (f"student.remat={remat}", f"optimizer.accumulate={accumulate}")
    result = fitted("vitb16_online", topology, *changes, program=program)
    assert (result["batch_size"], result["verdict"]) == (4096, "fits")
    assert result["peak"] <= peak * GIB
    assert bytes_per_parameter(result, program).keys() == {"all-reduce"}
    assert bytes_per_parameter(result, program)["all-reduce"] <= 1.05 * 2


def test_the_papers_step_fits_sixteen_chips_without_recomputation(tmp_path):
    program = tmp_path / "program"
    result = fitted("vitb16", "v5e:4x4", "optimizer.accumulate=4", program=program)
    assert (result["remat"], result["verdict"]) == ("none", "fits")
    assert bytes_per_parameter(result, program).keys() == {"all-reduce"}


def test_float32_sums_send_twice_as_much(tmp_path):
    program = tmp_path / "program"
    result = fitted("vitb16_online", "v5e:4x4", *PARTS, "optimizer.reduce_dtype=float32", program=program)
    assert 1.9 * 2 < bytes_per_parameter(result, program)["all-reduce"] <= 2.1 * 2


def test_too_large_is_told():
    result = fitted("vitb16_online", "v5e:4x4")
    assert (result["verdict"], result["change"]) == ("too large", "--config.optimizer.accumulate=2")


def test_fsdp_moves_parameters_and_no_activations(tmp_path):
    program = tmp_path / "program"
    result = fitted("vitb16_online", "v5e:4x4", *PARTS, "mesh.data=1", "mesh.fsdp=16", program=program)
    assert result["verdict"] == "fits"
    assert result["arguments"] < GIB
    moved = bytes_per_parameter(result, program)
    assert moved["all-gather"] <= 1.05 * 2
    assert sum(moved.values()) <= 3.3 * 2
