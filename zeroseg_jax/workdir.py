"""The folder of a run. One run at a time writes to it, and only a run with the same config can resume it."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from zeroseg_jax.config import flatten, from_json, read_config, to_json
from zeroseg_jax.errors import InputError
from zeroseg_jax.lease import hold_object
from zeroseg_jax.storage import AnyPath, is_remote, write_text

# The config of a resumed run may differ in these keys, because they do not change what the next step computes. A change
# of another key needs a new workdir. `steps` is one of those, because the learning rate depends on it.
MAY_CHANGE = (
    "eval",
    "model",
    "mesh",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "profile_steps",
    "wandb",
    "data.workers",
    "data.profile",  # older runs have it
    "teacher.cache",
)

LOCK = ".lock"
"""The file that the writer of a folder locks. The file stays when the writer ends, but the lock does not."""


@contextlib.contextmanager
def hold(folder: AnyPath, what: str) -> Iterator[None]:
    """Makes `folder` and locks it for this run, until the block ends or the process dies. Only process 0 locks it.

    `what` is what the process does in the folder, such as "trains". Other processes that want the folder print it.

    Raises:
        InputError: another process has locked the folder, or it cannot be made or written to.
    """
    if jax.process_index() != 0:
        yield
        return
    holder = f"process {os.getpid()} on {socket.gethostname()}, which {what} since {time.ctime()}"
    if is_remote(folder):
        with reachable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with hold_object(folder / LOCK, holder, _refusal(folder)):
            yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:  # a name with a null byte gives a ValueError
        raise InputError(unwritable(folder, error)) from error
    with file:
        if not _lock(file.fileno()):
            raise InputError(_in_use(folder))
        file.truncate(0)
        file.write(f"{holder}\n")
        file.flush()
        yield
        file.truncate(0)


def _lock(descriptor: int) -> bool:
    """Locks an open file until the process ends. Returns False if another process has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        # the file system has no locks
        logging.warning("the workdir cannot be locked (%s); start one run at a time in it", error.strerror)
    return True


@contextlib.contextmanager
def reachable(folder: AnyPath) -> Iterator[None]:
    """Raises InputError if its block cannot reach a folder in a bucket."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # from gcsfs, aiohttp or google-auth
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{folder} cannot be reached ({said}); check its name and your credentials") from error


def _refusal(folder: AnyPath) -> str:
    return f"{folder} is in use by {{holder}}; wait until it has ended, or choose another folder"


def _in_use(folder: Path) -> str:
    holder = (folder / LOCK).read_text(encoding="utf-8", errors="replace").strip()
    return _refusal(folder).format(holder=holder or "another process")


def unwritable(folder: AnyPath, error: OSError | ValueError) -> str:
    """The message about a folder that cannot be made or written to."""
    said = error.strerror if isinstance(error, OSError) else str(error)
    return f"the folder {str(folder)!r} cannot be written to ({said}); choose another"


def check_workdir(config: ConfigDict, workdir: AnyPath) -> None:
    """Checks that a run with `config` can start or resume in `workdir`. Nothing is written.

    Raises:
        InputError: another process has locked the workdir, it is not a folder, it cannot be written to, or it has
            checkpoints of a run whose config differs in other keys than `MAY_CHANGE`.
    """
    if is_remote(workdir):
        with reachable(workdir):
            _check_config(config, workdir)
        return
    assert isinstance(workdir, Path)
    try:
        with contextlib.suppress(FileNotFoundError):
            workdir.stat()
        existing = next(parent for parent in (workdir, *workdir.absolute().parents) if parent.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{existing} is a file")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{existing} may not be written to")
    except (OSError, ValueError) as error:
        raise InputError(unwritable(workdir, error)) from error
    if jax.process_index() == 0 and (workdir / LOCK).is_file():
        with (workdir / LOCK).open("a") as file:
            if not _lock(file.fileno()):
                raise InputError(_in_use(workdir))
    _check_config(config, workdir)


def _check_config(config: ConfigDict, workdir: AnyPath) -> None:
    # Without a checkpoint nothing is resumed. The run has stopped early, perhaps because of a mistake in its config.
    has_checkpoint = any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))
    if not has_checkpoint or not (workdir / "config.json").exists():
        return
    before, now = flatten(read_config(workdir)), flatten(from_json(to_json(config)))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    changed = [key for key in changed if not any(key == k or key.startswith(k + ".") for k in MAY_CHANGE)]
    if changed:
        listed = ", ".join(f"{key} ({before.get(key)!r} there, {now.get(key)!r} now)" for key in changed)
        raise InputError(f"{workdir} holds a run with a different config: {listed}; choose another --workdir")


@contextlib.contextmanager
def open_workdir(config: ConfigDict, workdir: AnyPath) -> Iterator[None]:
    """Locks `workdir` for a run with `config`, and writes `config.json` into it. Only process 0 writes.

    This is the first function of a run that writes, so call it when everything else is checked.

    Raises:
        InputError: as `check_workdir`, or the folder is not the folder that process 0 writes to.
    """
    with hold(workdir, "trains"):
        if jax.process_index() == 0:
            _check_config(config, workdir)
            write_text(workdir / "config.json", json.dumps(to_json(config), indent=2) + "\n")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("workdir")
        if not (workdir / "config.json").exists():
            raise InputError(f"{workdir} is not the folder that process 0 writes to; all machines must share --workdir")
        yield
