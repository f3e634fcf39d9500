"""How a process joins the other processes of a run, and how it ends.

JAX runs one process on each machine (on SLURM: one for each GPU), and all of them run the same program. Each process
sends heartbeats to the first one. When one process stops sending, JAX ends the others with a message.
"""

import os
import sys
from typing import NoReturn

import jax

from zeroseg_jax.errors import InputError

HEARTBEAT_SECONDS = 30
"""A process counts as dead if it has sent no heartbeat for this long."""
SHUTDOWN_SECONDS = 3600
"""How long a finished process waits for the others. The first process still has to write the results."""

DIVERGED = 3
"""The exit status of a run whose loss is no longer finite, for launchers that do not start it again."""


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
