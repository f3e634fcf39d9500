"""What happens on SIGTERM and on Ctrl-C: the run saves its state after the current step, and ends."""

import os
import signal
import socket
import sys
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

INTERRUPTED = 128 + signal.SIGINT
"""The exit status after Ctrl-C, the same as in a shell."""


class Preempted(Exception):
    """SIGTERM stopped the run. Its state is saved, and the same command continues it."""


class Interrupted(Preempted):
    """Ctrl-C stopped the run. Its state is saved, and the same command continues it."""


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
