"""The metrics of a run: `metrics.jsonl`, TensorBoard events, a progress bar, and Weights & Biases if it is set."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from tensorboardX import SummaryWriter

from zeroseg_jax.chips import peak_flops
from zeroseg_jax.errors import InputError
from zeroseg_jax.progress import ProgressBar
from zeroseg_jax.storage import AnyPath, LineWriter, is_remote, write_text


class RunLog:
    """Writes the metrics of the steps after `start`. Older lines about these steps, of a killed run, are removed.

    Only the first process writes. Without a terminal, the progress bar becomes a plain line every ten seconds.

    Args:
        images_per_step: of all devices together.
        images: how many there are in an epoch; 0 where there are no epochs.
        flops_per_step: of all devices together, by the model's sizes; 0 if not known.
        waited: tells the seconds that the run has waited for data so far.
        wandb: a run of Weights & Biases, which gets the same metrics (`start_wandb`).
    """

    def __init__(
        self,
        workdir: AnyPath,
        *,
        start: int,
        steps: int,
        images_per_step: int,
        images: int = 0,
        flops_per_step: int | float = 0,
        waited: Callable[[], float] = lambda: 0.0,
        wandb: Any = None,
    ):
        self._images_per_step, self._images, self._flops_per_step = images_per_step, images, flops_per_step
        self._waited, self._wandb = waited, wandb
        self._peak = peak_flops(jax.devices())
        self.silent = jax.process_index() != 0
        self.bar = ProgressBar("train", steps, start)
        if self.silent:
            return
        path = workdir / "metrics.jsonl"
        lines = path.read_bytes().decode("utf-8", "replace").splitlines() if path.exists() else []
        earlier = [line for line in lines if _step(line) <= start]
        if garbage := sum(_step(line) == math.inf for line in lines[:-1]):  # the last one may be half written
            logging.warning("%d lines of %s are damaged and taken out", garbage, path)
        write_text(path, "".join(line + "\n" for line in earlier))
        self._file = LineWriter(path)
        self._events = SummaryWriter(str(workdir), purge_step=start + 1 if start else None)
        self._last: tuple[int, float, float] | None = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        self.bar.close()
        if not self.silent:
            self._file.close()
            self._events.close()
            if self._wandb is not None:
                self._wandb.finish(exit_code=0 if kind is None else 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of one step, the `epoch`, and figures of the time since the last call.

        These are missing in the first call, whose step compiles: `step_seconds`, `images_per_second`, `data_wait` (the
        share that was spent waiting for data) and `mfu` (the model's FLOPs as a share of the chips' peak; None where
        either is not known).
        """
        if self.silent:
            return
        values, note, now = dict[str, float | None](metrics), f"loss {metrics['loss']:.4f}", time.monotonic()
        if self._images:
            values["epoch"] = round(step * self._images_per_step / self._images, 4)
            note = f"epoch {values['epoch']:.2f}  {note}"
        waited = self._waited()
        if self._last:
            seconds = max(now - self._last[1], 1e-9)
            steps = step - self._last[0]
            speed, wait = steps * self._images_per_step / seconds, min((waited - self._last[2]) / seconds, 1.0)
            known = self._peak and self._flops_per_step
            mfu = steps * self._flops_per_step / seconds / self._peak if known and self._peak else None
            values |= {"step_seconds": round(seconds / steps, 6), "images_per_second": round(speed, 1)}
            values |= {"data_wait": round(wait, 4), "mfu": mfu if mfu is None else round(mfu, 4)}
            note += f"  {seconds / steps:.3g} s/step  {speed:.0f} images/s  data {wait:.0%}"
            note += "" if mfu is None else f"  mfu {mfu:.0%}"
        self._last = (step, now, waited)
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        there = {name: value for name, value in values.items() if value is not None}
        for name, value in there.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(there, step=step)
        self.bar.update(step, note)


def start_wandb(project: str, workdir: AnyPath, config: Mapping[str, Any]) -> Any:
    """A run of Weights & Biases in `project`, None for "" and in all processes but the first.

    A workdir always has the same run, which goes on when the training does.

    Raises:
        InputError: wandb is not installed, or cannot start a run.
    """
    if not project or jax.process_index() != 0:
        return None
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise InputError(
            "config.wandb is set, but wandb is not installed; pip install 'zeroseg_jax[wandb]' (here: '.[wandb]')"
        ) from error
    number = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
    try:
        folder = None if is_remote(workdir) else str(workdir)
        return wandb.init(
            project=project, name=workdir.name, id=number, resume="allow", dir=folder, config=dict(config)
        )
    except wandb.Error as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"wandb cannot start a run ({said}); run `wandb login`, or set WANDB_MODE=offline") from error


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. Lines that are half written or damaged are left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if _step(line) < math.inf]


def _step(line: str) -> int | float:
    """The step of a line of metrics.jsonl; a line that is half written or damaged counts as infinitely late."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
    return step if type(step) is int else math.inf
