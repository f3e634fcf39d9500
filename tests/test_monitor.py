"""The watchdog, the share of useful time, and Weights & Biases where it cannot be used."""

import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from zeroseg_jax import log as log_module
from zeroseg_jax.chips import CHIPS
from zeroseg_jax.config_ranges import parse_steps
from zeroseg_jax.errors import InputError
from zeroseg_jax.log import RunLog, start_wandb
from zeroseg_jax.monitor import Goodput, Watchdog


def test_the_steps_to_trace():
    assert parse_steps("10:15") == (10, 15) and parse_steps("3:3") == (3, 3) and parse_steps("") is None
    for wrong in ("10", "15:10", "0:3", "a:b", "1:2:3", "-1:4", ":"):
        with pytest.raises(InputError, match="it must be the first and the last step to trace, such as 10:15"):
            parse_steps(wrong)


def test_the_watchdog_prints_all_stacks_of_a_step_that_hangs(capfd):
    with Watchdog(least=0.3) as watchdog:
        for _ in range(5):
            watchdog.step()
            time.sleep(0.001)
        assert capfd.readouterr().err == ""
        time.sleep(0.6)
    told = capfd.readouterr().err
    assert "Timeout" in told and "test_the_watchdog_prints_all_stacks" in told
    time.sleep(0.5)
    assert capfd.readouterr().err == ""  # it has ended with its block


def test_goodput_is_the_share_of_the_time_in_steps(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    goodput = Goodput()
    now[0] += 20
    goodput.started()
    with goodput.other("compiling"):
        now[0] += 10
    now[0] += 60
    with pytest.raises(KeyError), goodput.other("saving"):
        now[0] += 10
        raise KeyError
    expected = "60 steps in 0:01:40, goodput 60% of the time in steps (start 20%, compiling 10%, saving 10%)"
    assert goodput.summary(60) == expected


@pytest.mark.parametrize(("peak", "mfu"), [(None, None), (100 * CHIPS["h100"].flops, 0.5)])
def test_the_metrics_of_time(tmp_path, monkeypatch, peak, mfu, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(log_module, "peak_flops", lambda devices: peak)
    flops = 100 * CHIPS["h100"].flops
    with RunLog(tmp_path, start=0, steps=20, images_per_step=8, images=32, flops_per_step=flops) as log:
        log.write(1, {"loss": 1.0})
        now[0] += 20
        log.write(11, {"loss": 0.5})
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == {"step": 1, "loss": 1.0, "epoch": 0.25}
    times = {"step_seconds": 2.0, "images_per_second": 4.0, "data_wait": 0.0, "mfu": mfu}
    assert second == {"step": 11, "loss": 0.5, "epoch": 2.75, **times}
    shown = capsys.readouterr().err
    assert "epoch 2.75  loss 0.5000  2 s/step  4 images/s  data 0%" in shown and ("mfu 50%" in shown) == bool(mfu)


def test_wandb_that_cannot_be_used_is_told(monkeypatch):
    assert start_wandb("", Path("run"), {}) is None
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(InputError, match=re.escape("pip install 'zeroseg_jax[wandb]' (here: '.[wandb]')")):
        start_wandb("project", Path("run"), {})

    class Error(Exception):
        pass

    def init(**options):
        raise Error("api_key not configured\n(no-tty).")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=Error))
    with pytest.raises(InputError, match=r"\(api_key not configured \(no-tty\)\); run `wandb login`"):
        start_wandb("project", Path("run"), {})
