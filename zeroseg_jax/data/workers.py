"""What every worker process does first, so that it neither outlives the run that it serves nor ends before it."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

_LEFT_TO_THE_PARENT = {signal.SIGINT, signal.SIGTERM}


def usable_cpus() -> int:
    """The processors that this process may use, which a container or a scheduler may have limited."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MOST_WORKERS = 32
"""That are chosen automatically. Each holds the names of all images in its memory."""


def resolve_workers(workers: int) -> int:
    """`workers`, or for -1 a process for each usable processor but one, which is left to the main process."""
    return min(usable_cpus() - 1, MOST_WORKERS) if workers == -1 else workers


def follow_parent(*_: int) -> None:
    """Makes this worker end when its parent does, also by SIGKILL, and not before.

    Ctrl-C in a terminal, and a cluster's SIGTERM, come to the workers too, but the run that they serve still finishes
    its step and saves.
    """
    for number in _LEFT_TO_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_THE_PARENT)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # a pipe that the system closes, however the parent ends
        os._exit(1)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Workers that start in the block get no signal before they are ready for it; the parent gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
