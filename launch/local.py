"""Starts N processes of one run on this machine, on its CPU: what a cluster does, at home.

    python launch/local.py 2 -- main.py --config=configs/demo.py --workdir=runs/two
    python launch/local.py 4 --devices=2 -- main.py ...      # two CPU devices in each process

Each line of a process begins with its number. SIGTERM and Ctrl-C go on to all of them. When one fails, the others end
by themselves within a minute. Those that do not are killed. If this starter is killed, its processes are killed too (on
Linux). The exit status is that of the first failure (128 + the signal that killed it), or 0.
"""

import argparse
import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TextIO

PATIENCE_SECONDS = 60
"""How long the others may take to end after one has failed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("processes", type=int, metavar="N")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process (default 1)")
    parser.add_argument("command", nargs="+", metavar="-- main.py ...", help="a Python script and its arguments")
    options = parser.parse_args()
    if options.processes < 1 or options.devices < 1:
        parser.error("N and --devices are at least 1")

    port = free_port()
    numbers = range(options.processes)
    children = [start(options.command, number, len(numbers), options.devices, port) for number in numbers]

    def pass_on(received: int, _: object) -> None:
        for child in children:
            child.send_signal(received)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    printers = [
        threading.Thread(target=forward, args=(stream, out, number))
        for number, child in enumerate(children)
        for stream, out in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
    ]
    for printer in printers:
        printer.start()
    status = wait(children)
    for printer in printers:
        printer.join()
    return status


LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent ends."""


def end_with(parent: int) -> None:
    """Runs in a new process: it is killed when its `parent` ends, however that comes about."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was faster
            os._exit(1)


def start(command: list[str], number: int, processes: int, devices: int, port: int) -> subprocess.Popen:
    where = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={number}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1"}
    parent = os.getpid()
    return subprocess.Popen(
        [sys.executable, *command, *where],
        preexec_fn=lambda: end_with(parent),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # else Ctrl-C would reach each of them twice
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forward(stream: TextIO, out: TextIO, number: int) -> None:
    for line in stream:
        out.write(f"[{number}] {line}")
        out.flush()


def wait(children: list[subprocess.Popen]) -> int:
    """Returns when all have ended, with the status of the first that failed."""
    ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    for number, child in enumerate(children):
        threading.Thread(target=lambda n=number, c=child: ended.put((n, c.wait())), daemon=True).start()
    first, deadline = 0, None
    for _ in children:
        try:
            number, status = ended.get(timeout=deadline and max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            for child in children:
                child.kill()
            number, status = ended.get()
        if status and not first:
            first, deadline = status, time.monotonic() + PATIENCE_SECONDS
            print(f"process {number} ended with status {status}; the others end too", file=sys.stderr, flush=True)
    return first if first >= 0 else 128 - first


if __name__ == "__main__":
    sys.exit(main())
