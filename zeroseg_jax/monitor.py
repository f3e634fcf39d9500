"""Watches a training run: traces some steps, reports steps that hang, and measures the share of useful time."""

import contextlib
import faulthandler
import time
from collections import Counter, deque
from collections.abc import Iterator
from statistics import median
from typing import Any

import jax
from absl import logging

from zeroseg_jax.storage import AnyPath, written_locally

STDERR = 2
"""The file descriptor; `sys.stderr` may be something else, in a notebook for example."""


class Profiler:
    """Writes a trace of the steps `first` to `last` into WORKDIR/profile, for xprof; `steps` as
    `config_ranges.parse_steps` has it.

    It is a context manager. Each process writes the trace of its own devices. For a workdir in a bucket it is written
    on the disk and then uploaded, as JAX writes to disks alone.
    """

    def __init__(self, steps: tuple[int, int] | None, workdir: AnyPath):
        self._steps, self._folder = steps, workdir / "profile"
        self._is_tracing = False
        self._place = contextlib.ExitStack()

    def before(self, step: int) -> None:
        if self._steps and self._steps[0] <= step <= self._steps[1] and not self._is_tracing:
            jax.profiler.start_trace(str(self._place.enter_context(written_locally(self._folder))))
            self._is_tracing = True

    def after(self, step: int, result: Any) -> None:
        """`result` are arrays of the step: the trace ends when they are computed."""
        if self._is_tracing and self._steps and step >= self._steps[1]:
            jax.block_until_ready(result)
            self._stop()
            logging.info("wrote a trace; look at it with: xprof --logdir=%s", self._folder)

    def _stop(self) -> None:
        self._is_tracing = False
        with self._place:
            jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._is_tracing:
            self._stop()


class Watchdog:
    """Prints the stacks of all threads on stderr when a step takes `factor` times the median of those before it.

    It is a context manager. Steps shorter than `least` seconds never count as hanging, and nothing is printed until
    three steps have ended, since the first one compiles.
    """

    def __init__(self, factor: float = 20.0, least: float = 60.0):
        self._factor, self._least = factor, least
        self._seconds: deque[float] = deque(maxlen=100)
        self._last: float | None = None

    def step(self) -> None:
        """Call this after each step."""
        now = time.monotonic()
        if self._last is not None:
            self._seconds.append(now - self._last)
        self._last = now
        if len(self._seconds) >= 3:
            limit = max(self._factor * median(self._seconds), self._least)
            # Another thread prints. It needs no lock of Python, so it also prints if a lock is held forever.
            faulthandler.dump_traceback_later(limit, file=STDERR)

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *error: Any) -> None:
        faulthandler.cancel_dump_traceback_later()


class Goodput:
    """Measures how much of a run's wall time is spent in steps, and how much in other work."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._other: Counter[str] = Counter()

    def add(self, what: str, seconds: float) -> None:
        """Counts seconds that were not spent in steps."""
        self._other[what] += seconds  # type: ignore[assignment]  # Counter is typed for whole numbers

    def started(self) -> None:
        """Counts the time until now as the start."""
        self.add("start", time.monotonic() - self._begun)

    @contextlib.contextmanager
    def other(self, what: str) -> Iterator[None]:
        """A context manager that counts the time of its block as time outside of steps."""
        since = time.monotonic()
        try:
            yield
        finally:
            self.add(what, time.monotonic() - since)

    def summary(self, steps: int, waited: float = 0.0) -> str:
        """As "17 steps in 0:02:05, goodput 81% of the time in steps (start 12%, compiling 5%, data 2%)".

        `waited` are the seconds that the steps waited for data.
        """
        if waited:
            self.add("data", waited)
        total = max(time.monotonic() - self._begun, 1e-9)
        share = max(1 - sum(self._other.values()) / total, 0.0)
        rest = ", ".join(f"{what} {seconds / total:.0%}" for what, seconds in self._other.items())
        hours, minutes, seconds = int(total) // 3600, int(total) // 60 % 60, int(total) % 60
        took = f"{hours}:{minutes:02d}:{seconds:02d}"
        return f"{steps} steps in {took}, goodput {share:.0%} of the time in steps" + (f" ({rest})" if rest else "")
