"""Shows the progress of long work: a bar with the remaining time, and log lines before and after a slow step."""

import contextlib
import sys
import time
from collections.abc import Iterator

import jax
from absl import logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar:
    """A progress bar with the remaining time on a terminal.

    Without a terminal it prints a line on stderr, at most every `every` seconds, and one at the end. Only the first
    process of a run shows anything.
    """

    def __init__(self, name: str, total: int, start: int = 0, every: float = 10.0):
        self.name, self.total, self.every = name, total, every
        self.silent = jax.process_index() != 0
        self._printed = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not self.silent:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
            text = TextColumn("{task.description}")
            self._bar = Progress(text, *columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=total, completed=start, note="")
            self._bar.start()

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of `total` are finished, with a `note` at the end."""
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        self._first = self._first or (done, now)
        if self.silent or (now - self._printed < self.every and done < self.total):
            return
        self._printed = now
        line = f"{self.name} {done}/{self.total}"
        if done > self._first[0]:  # the time before the first update includes compilation, so it does not count
            remaining = (now - self._first[1]) / (done - self._first[0]) * (self.total - done)
            line += f"  ETA {int(remaining) // 60}:{int(remaining) % 60:02d}"
        print(f"{line}  {note}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Stops the bar."""
        if self._bar:
            self._bar.stop()


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """Logs the begin of a step that may take minutes without other output, and afterwards how long it took."""
    logging.info("%s ...", what)
    start = time.monotonic()
    yield
    logging.info("%s took %.0f s", what, time.monotonic() - start)


def spoken(seconds: float) -> str:
    """A time in words, such as "3 min"."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"
