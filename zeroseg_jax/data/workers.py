"""The start of every worker process. A worker must not end before its run, and must not outlive it."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

_LEFT_TO_THE_PARENT = {signal.SIGINT, signal.SIGTERM}


def usable_cpus() -> int:
    """The number of CPUs that this process may use. A container or a scheduler may limit it."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MOST_WORKERS = 32
"""Largest number of workers that is chosen automatically. Each keeps the names of all images in its memory."""


def resolve_workers(workers: int) -> int:
    """The number of worker processes. -1 means all usable CPUs but one, which is for the main process."""
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
    """Holds signals back while workers start, until they can handle them. The parent gets the signals afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
