"""How a process joins the other processes of a run, notices SIGTERM or Ctrl-C, and ends.

JAX runs one process on each machine (on SLURM: one for each GPU), and all of them run the same program. Each process
sends heartbeats to the first one. When one process stops sending, JAX ends the others with a message.
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
"""A process counts as dead if it has sent no heartbeat for this long."""
SHUTDOWN_SECONDS = 3600
"""How long a finished process waits for the others. The first process still has to write the results."""

INTERRUPTED = 128 + signal.SIGINT
"""The exit status after Ctrl-C, the same as in a shell."""
DIVERGED = 3
"""The exit status of a run whose loss is no longer finite, for launchers that do not start it again."""


class Preempted(Exception):
    """SIGTERM stopped the run. Its state is saved, and the same command continues it."""


class Interrupted(Preempted):
    """Ctrl-C stopped the run. Its state is saved, and the same command continues it."""


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes. Call it before any other function of JAX.

    On a TPU pod, in a SLURM step and in a Kubernetes job JAX finds the three values itself. Elsewhere give all three.

    Args:
        coordinator: address ("host:port") on which process 0 listens.
        num_processes: number of processes.
        process_id: number of this process, from 0.

    Raises:
        InputError: only some of the three are given, or none of them outside a cluster that JAX knows.
    """
    arguments = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in arguments.items() if value is None]
    if 0 < len(missing) < 3:
        flags = "--coordinator, --num_processes and --process_id"
        raise InputError(f"{' and '.join(missing)} missing; give all of {flags}, or none of them on a cluster")
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
    except ValueError as error:  # JAX finds no cluster
        raise InputError(
            f"JAX finds no TPU pod, SLURM step or Kubernetes job around this process ({error});"
            " leave --distributed out, or give --coordinator, --num_processes and --process_id"
        ) from error


def exit_process(report: str, status: int) -> NoReturn:
    """Prints `report` on stderr and ends this process with the exit status `status`.

    One of several processes ends at once, without JAX's shutdown. The shutdown would wait for the other processes,
    and those wait for this one in the next step. Status 1 means that `report` is a traceback.
    """
    if not jax.distributed.is_initialized():
        print(report, file=sys.stderr, flush=True)
        sys.exit(status)
    if status == 1:
        report += "If the error is about a connection, another process ended first: look for its message."
    print(f"process {jax.process_index()} of {jax.process_count()}: {report}", file=sys.stderr, flush=True)
    os._exit(status)


class Preemption:
    """A context manager that says after each step whether SIGTERM or Ctrl-C asked the run to stop.

    A cluster sends SIGTERM before it takes machines away. With several processes, JAX makes all of them stop after the
    same step. A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self._stop = self._interrupted = False
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            return self
        numbers = [signal.SIGTERM] if jax.process_count() == 1 else []  # with several processes JAX handles SIGTERM
        if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):  # a shell ignores it for commands with `&`
            numbers.append(signal.SIGINT)
        if not numbers:
            return self
        # the main thread may be compiling for minutes, so another thread reacts to the signals
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        self._sockets = receiver, sender
        self._wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
        self._listener = threading.Thread(target=self._listen, args=(receiver,), name="signals", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._old_handlers:
            return
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        receiver, sender = self._sockets
        sender.close()
        self._listener.join()
        receiver.close()

    def _listen(self, receiver: socket.socket) -> None:
        while received := receiver.recv(64):
            for number in received:
                if number in self._old_handlers:
                    self._handle(number)

    def _handle(self, number: int) -> None:
        if number != signal.SIGINT:
            self._stop = True
            return
        if self._interrupted:
            print("\nended at once; the last checkpoint stays", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)
        self._stop = self._interrupted = True
        if jax.process_index() == 0:
            print("\nsaving after this step, then stopping; Ctrl-C again ends at once", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def after(self, step: int) -> bool:
        """Whether the run must save its state and stop after `step`."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self._stop

    def stopped(self, where: str) -> Preempted:
        """The exception to raise after the state is saved. `where` says where the run stopped."""
        kind, name = (Interrupted, "Ctrl-C") if self._interrupted else (Preempted, "SIGTERM")
        return kind(f"stopped by {name} {where}")
