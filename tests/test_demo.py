"""The demo at full length: too slow for every run, `pytest -m slow tests/test_demo.py` takes about twelve minutes."""

import json
from pathlib import Path

import jax
import pytest

CONFIG = Path(__file__).parents[1] / "configs/demo.py"


@pytest.fixture
def optimised():
    """The other tests compile without optimisations; what runs for minutes needs them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_beats_its_teacher_and_twice_the_steps_are_no_worse(optimised, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(CONFIG.parents[1])
    from main import run

    results = {}
    for steps in (600, 1200):
        overrides = [("steps", str(steps)), ("teacher.cache", str(tmp_path / "teacher_cache"))]
        if steps == 1200:
            overrides.append(("eval.baselines", "()"))
        run("train", str(CONFIG), str(tmp_path / str(steps)), overrides)
        results[steps] = json.loads(capsys.readouterr().out.splitlines()[-1])
    demo = results[600]
    assert demo["miou"] >= 0.6
    for name, baseline in demo["baselines"].items():
        if name != "student, not renamed":
            assert demo["miou"] >= baseline["miou"] + 0.1, name
            assert demo["groups"]["objects"] > baseline["objects"], name
    # seeds differ by about a point
    assert results[1200]["miou"] >= demo["miou"] - 0.015
