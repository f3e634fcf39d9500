"""One process of many: how a run joins the others, notices that it must stop, and ends without leaving them waiting.

JAX runs one process on each machine (on SLURM: one for each GPU), and all of them run the same program. The first one
coordinates: each sends it a heartbeat, and when one falls silent JAX ends the others with a message.
"""

import os
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from zeroseg_jax.errors import InputError

HEARTBEAT_SECONDS = 30
"""A process that is silent for so long counts as dead."""
SHUTDOWN_SECONDS = 3600
"""How long processes that are done wait for the others: the first one still draws and writes the results."""


INTERRUPTED = 128 + signal.SIGINT
"""The exit status after Ctrl-C, as shells have it."""


class Preempted(Exception):
    """The run was told to stop (SIGTERM); its state is saved, and the same command goes on from there."""


class Interrupted(Preempted):
    """The same, by Ctrl-C."""


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes; call it before anything else of JAX.

    On a TPU pod, in a SLURM step and in a Kubernetes job JAX finds out by itself who is who. Elsewhere `coordinator` is
    the address ("host:port") where the process with `process_id` 0 of `num_processes` listens.

    Raises:
        InputError: only some of the three are given, or none in a place that JAX does not know.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise InputError(f"{' and '.join(missing)} missing; processes that JAX cannot place need all three flags")
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise InputError(f"--process_id={process_id} is not one of 0 to {num_processes - 1}; see --num_processes")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=None if missing else "deactivate",
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:  # what JAX raises where it finds no cluster
        raise InputError(
            f"JAX finds no TPU pod, SLURM step or Kubernetes job around this process ({error});"
            " leave --distributed out, or give --coordinator, --num_processes and --process_id"
        ) from error


def leave(report: str, status: int) -> NoReturn:
    """Prints `report`, the reason why this process fails, on stderr and ends it with `status` (1: after a traceback).

    One of many ends at once: the usual way out waits for the others, while they wait for this one in the next step.
    """
    if not jax.distributed.is_initialized():
        print(report, file=sys.stderr, flush=True)
        sys.exit(status)
    if status == 1:
        report += "Where a connection broke, another process ended first: look for its message."
    print(f"process {jax.process_index()} of {jax.process_count()}: {report}", file=sys.stderr, flush=True)
    os._exit(status)


class Preemption:
    """Tells after each step whether to stop, since SIGTERM or Ctrl-C came: a cluster sends SIGTERM before it takes
    machines away. A second Ctrl-C ends the process at once.

    Use it as a context manager. With several processes JAX passes the news on, and all agree on the step.
    """

    def __init__(self) -> None:
        self._told = self._interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():  # Python hands signals to that one only
            return self
        numbers = [signal.SIGTERM] if jax.process_count() == 1 else []  # else JAX listens to SIGTERM itself
        if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):  # as a shell has it for what runs with `&`
            numbers.append(signal.SIGINT)
        if not numbers:
            return self
        # The main thread may be with the compiler for minutes, so that another one acts on the signals.
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        self._sockets = receiver, sender
        self._wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        self._listener = threading.Thread(target=self._listen, args=(receiver,), name="signals", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        receiver, sender = self._sockets
        sender.close()
        self._listener.join()
        receiver.close()

    def _listen(self, receiver: socket.socket) -> None:
        while received := receiver.recv(64):
            for number in received:
                if number in self._before:
                    self._tell(number)

    def _tell(self, number: int) -> None:
        if number != signal.SIGINT:
            self._told = True
            return
        if self._interrupted:
            print("\nended at once; the last checkpoint stays", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)
        self._told = self._interrupted = True
        if jax.process_index() == 0:
            print("\nstopping after this step, which is saved; Ctrl-C again ends at once", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def after(self, step: int) -> bool:
        """Whether to save and stop after `step`."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self._told

    def stopped(self, where: str) -> Preempted:
        """The exception to raise when it is saved."""
        kind, name = (Interrupted, "Ctrl-C") if self._interrupted else (Preempted, "SIGTERM")
        return kind(f"stopped by {name} {where}")
