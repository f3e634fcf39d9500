"""The lowest versions that setup.cfg allows of the libraries that talk to the hub, installed beside the others."""

import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HUB = ("huggingface_hub", "transformers")
"""Transformers is with it, since its newer versions ask for a newer huggingface_hub."""


def lowest(names: tuple[str, ...]) -> dict[str, str]:
    """The lower bound of each of these requirements."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    bounds = {r.name: {s.operator: s.version for s in r.specifier} for r in requirements}
    return {name: bounds[name][">="] for name in names}


@pytest.mark.end_to_end
def test_the_hub_with_the_lowest_versions(tmp_path):
    versions = lowest(HUB)
    wanted = [f"{name}=={version}" for name, version in versions.items()]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path), *wanted]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip cannot install {' and '.join(wanted)}: {installed.stderr.strip().splitlines()[-1]}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    show = f"import {', '.join(HUB)}; print({', '.join(f'{name}.__version__' for name in HUB)})"
    shown = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
    assert [v.split(".")[:2] for v in shown.stdout.split()] == [v.split(".")[:2] for v in versions.values()]
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "tests/models/weights/test_hub.py",
    ]
    run = subprocess.run(tests, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
