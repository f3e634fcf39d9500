"""A lock for a folder in a bucket, so that one process at a time writes to it. Buckets have no locks of their own.

The writer keeps an object in the folder and replaces it every few seconds. Another process that finds the object
watches it. If the object changes, its writer is alive. If it stays the same for a while, its writer was killed.
"""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator

from absl import logging

from zeroseg_jax.errors import InputError
from zeroseg_jax.storage import AnyPath, store

RENEW_SECONDS = float(os.environ.get("ZEROSEG_LEASE_SECONDS", "20"))
"""The writer replaces the object this often. If the object stays the same three times as long, the writer is dead."""


@contextlib.contextmanager
def hold_object(path: AnyPath, holder: str, refusal: str) -> Iterator[None]:
    """Holds the object `path` until the block ends. `holder` describes this process; it is the object's first line.

    Raises:
        InputError: another process holds it. The message is `refusal`, with that process in place of {holder}.
    """
    name, text = os.fspath(path), f"{holder}\n{uuid.uuid4()}\n"
    _wait_until_free(path, refusal)
    try:
        store().pipe_file(name, f"{text}0\n".encode(), mode="create")  # fails if another process was faster
    except FileExistsError as error:
        raise InputError(refusal.format(holder=_holder(path))) from error
    ended = threading.Event()

    def renew() -> None:
        count = 0
        while not ended.wait(RENEW_SECONDS):
            count += 1
            try:
                path.write_bytes(f"{text}{count}\n".encode())
            except Exception as error:  # the connection may come back
                logging.warning("%s cannot be renewed (%s); trying again", path, error)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _wait_until_free(path: AnyPath, refusal: str) -> None:
    """Waits until the object is gone, or has not changed for the time of three renewals."""
    first = _content(path)
    if first is None:
        return
    logging.info("%s exists; waiting %g s to see whether its writer is alive", path, 3 * RENEW_SECONDS)
    end = time.monotonic() + 3 * RENEW_SECONDS
    while time.monotonic() < end:
        time.sleep(RENEW_SECONDS / 4)
        now = _content(path)
        if now is None:
            return
        if now != first:
            raise InputError(refusal.format(holder=_holder(path)))
    logging.warning("the writer of %s was killed before it removed it; this run takes its place", path)
    path.unlink(missing_ok=True)


def _content(path: AnyPath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _holder(path: AnyPath) -> str:
    content = (_content(path) or b"another process").decode("utf-8", "replace")
    return content.split("\n")[0]
