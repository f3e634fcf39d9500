"""What docs/performance.md promises of the compiled step, held against the TPU compiler, one at a time; half an hour.

`pip install 'jax[tpu]' && pytest -m aot -n 0`
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GIB = 2**30
PARTS = ("student.remat=dots", "optimizer.accumulate=16")
"""How 256 images a chip compile soonest."""

pytestmark = [
    pytest.mark.aot,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]


def fitted(config: str, topology: str, *overrides: str) -> dict:
    """What launch/fit.py prints."""
    command = [sys.executable, ROOT / "launch/fit.py", f"--config={ROOT / 'configs' / config}.py"]
    command += [f"--topology={topology}", "--json", *(f"--config.{each}" for each in overrides)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def bytes_per_parameter(result: dict) -> dict[str, float]:
    return {kind: each["bytes"] / result["parameters"] for kind, each in result["collectives"].items()}


@pytest.mark.parametrize(
    ("topology", "remat", "accumulate", "peak", "flops", "program"),
    [
        ("v5e:4x4", "dots", 1, 10.5, 1.03, 180),
        ("v5e:4x4", "dots", 16, 5.0, 1.03, 130),
        ("v5e:8x8", "none", 1, 12.0, 1.01, 130),
        ("v5e:8x8", "none", 4, 5.0, 1.01, 130),
    ],
)
def test_data_parallel(topology, remat, accumulate, peak, flops, program):
    result = fitted("vitb16_online", topology, f"student.remat={remat}", f"optimizer.accumulate={accumulate}")
    assert (result["batch_size"], result["verdict"]) == (4096, "fits")
    assert result["peak"] <= peak * GIB
    assert result["flops_by_model"] <= flops
    assert result["program"] <= program * 2**20  # grows with a compile's CPU-seconds, the same in every run
    if accumulate > 1:  # parts of 16 images compile with a margin; the whole batch needs more, see docs/performance.md
        assert result["compile_cpu_seconds"] <= 240
    assert bytes_per_parameter(result).keys() == {"all-reduce"}
    assert bytes_per_parameter(result)["all-reduce"] <= 1.05 * 2


def test_the_papers_step_fits_sixteen_chips_without_recomputation():
    result = fitted("vitb16", "v5e:4x4", "optimizer.accumulate=4")
    assert (result["remat"], result["verdict"]) == ("none", "fits")
    assert result["flops_by_model"] <= 1.01
    assert result["flops"] * result["chips"] / result["batch_size"] <= 92e9  # the goal was 85; docs/performance.md
    assert bytes_per_parameter(result).keys() == {"all-reduce"}


def test_float32_sums_send_twice_as_much():
    result = fitted("vitb16_online", "v5e:4x4", *PARTS, "optimizer.reduce_dtype=float32")
    assert 1.9 * 2 < bytes_per_parameter(result)["all-reduce"] <= 2.1 * 2


def test_too_large_is_told():
    result = fitted("vitb16_online", "v5e:4x4")
    assert (result["verdict"], result["change"]) == ("too large", "--config.optimizer.accumulate=2")


def test_fsdp_moves_parameters_and_no_activations():
    result = fitted("vitb16_online", "v5e:4x4", *PARTS, "mesh.data=1", "mesh.fsdp=16")
    assert result["verdict"] == "fits"
    assert result["arguments"] < GIB
    moved = bytes_per_parameter(result)
    assert moved["all-gather"] <= 1.05 * 2
    assert sum(moved.values()) <= 3.3 * 2
