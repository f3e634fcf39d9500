"""Where the time of the input goes: seconds by stage, and a table of them at the end of a run."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

STAGES = ("read", "decode", "augment", "batch", "transfer")
"""read: encoded bytes from the source; decode: to pixels; augment: crop, resize, flip; batch: stacking, and the copy
out of the workers; transfer: the embeddings of the cache, and the hand-over to the devices."""


class Laps:
    """Seconds of the stages of one example, measured where the work is done and sent along with the example."""

    def __init__(self) -> None:
        self.seconds = np.zeros(len(STAGES))
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Counts the time since the last call for `stage`."""
        now = time.perf_counter()
        self.seconds[STAGES.index(stage)] += now - self._since
        self._since = now


class InputProfile:
    """Sums of a whole run, of this process and its workers."""

    def __init__(self, workers: int):
        self.workers = workers
        self.seconds = np.zeros(len(STAGES))
        self.images = 0
        self.waited = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of its body for stage `name`."""
        laps = Laps()
        yield
        laps.lap(name)
        self.seconds += laps.seconds

    def table(self, elapsed: float) -> Table:
        """The stages of a run of `elapsed` seconds; the slowest is marked."""
        where = f"{self.workers} worker processes" if self.workers else "threads of the main process"
        table = Table(title=f"input: {self.images} images in {elapsed:.0f} s, read by {where}")
        for column in ("stage", "ms an image", "share"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        total, slowest = max(self.seconds.sum(), 1e-9), int(self.seconds.argmax())
        for i, (name, seconds) in enumerate(zip(STAGES, self.seconds, strict=True)):
            mark, style = (" (slowest)", "bold") if i == slowest else ("", None)
            milliseconds = 1e3 * seconds / max(self.images, 1)
            table.add_row(name + mark, f"{milliseconds:.2f}", f"{seconds / total:.0%}", style=style)
        table.caption = f"training waited for data {self.waited / max(elapsed, 1e-9):.1%} of the time"
        return table

    def print(self, elapsed: float) -> None:
        Console(stderr=True).print(self.table(elapsed))
