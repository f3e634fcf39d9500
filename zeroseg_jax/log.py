"""What a run tells: `metrics.jsonl`, TensorBoard events, and a progress bar on stderr."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from tensorboardX import SummaryWriter

from zeroseg_jax.progress import ProgressBar
from zeroseg_jax.workdir import write_text


class RunLog:
    """Writes the metrics of the steps after `start`; lines of a killed run beyond `start` are taken out first.

    Only the first process writes. Without a terminal the progress bar becomes a plain line every ten seconds.
    `waited` tells the seconds that the run has waited for data so far.
    """

    def __init__(
        self, workdir: Path, *, start: int, steps: int, images_per_step: int, waited: Callable[[], float] = lambda: 0.0
    ):
        self.images_per_step, self._waited = images_per_step, waited
        self.silent = jax.process_index() != 0
        self.bar = ProgressBar("train", steps, start)
        if self.silent:
            return
        path = workdir / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) <= start]
        if garbage := sum(_step(line) == math.inf for line in lines[:-1]):  # the last one may be half written
            logging.warning("%d lines of %s are damaged and taken out", garbage, path)
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(workdir), purge_step=start + 1 if start else None)
        self._last: tuple[int, float, float] | None = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
        if not self.silent:
            self._file.close()
            self._events.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of one step, and of the time since the last call (the first step compiles) the images per
        second and the share that was spent waiting for data.
        """
        if self.silent:
            return
        values, note, now = dict(metrics), f"loss {metrics['loss']:.4f}", time.monotonic()
        waited = self._waited()
        if self._last:
            seconds = max(now - self._last[1], 1e-9)
            speed = (step - self._last[0]) * self.images_per_step / seconds
            values["images_per_second"] = round(speed, 1)
            values["data_wait"] = round(min((waited - self._last[2]) / seconds, 1.0), 4)
            note += f"  {speed:.0f} images/s  data {values['data_wait']:.0%}"
        self._last = (step, now, waited)
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self.bar.update(step, note)


def _step(line: str) -> int | float:
    """The step of a line of metrics.jsonl; a line that is half written or damaged counts as infinitely late."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
    return step if type(step) is int else math.inf
