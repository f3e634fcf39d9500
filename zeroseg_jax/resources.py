"""Turns errors about a full disk or a full memory into one sentence that says what to change."""

import contextlib
import errno
import re
from collections.abc import Iterator

from ml_collections import ConfigDict

from zeroseg_jax.errors import InputError

_DISK = {errno.ENOSPC: "is full", errno.EDQUOT: "quota is used up", errno.EFBIG: "does not take a file of that size"}


@contextlib.contextmanager
def explained_exhaustion(config: ConfigDict | None = None, mode: str = "") -> Iterator[None]:
    """Raises InputError with one sentence where a library raises because a disk or a device's memory is full.

    The settings that the sentence names depend on `config` and `mode`, which are the ones of main.py. `mode` may also
    be the name of another command. Other errors pass unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (sentence := explain(error, config, mode)) is None:
            raise
        raise InputError(sentence) from error


def explain(error: BaseException, config: ConfigDict | None = None, mode: str = "") -> str | None:
    """The sentence for an error if a full disk or memory caused it, directly or indirectly; None for other errors."""
    for cause in _with_causes(error):
        if sentence := _explain_disk(cause):
            return sentence
        if isinstance(cause, MemoryError) or "RESOURCE_EXHAUSTED" in str(cause):
            return _explain_memory(cause, config, mode)
    return None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain_disk(error: BaseException) -> str | None:
    # the libraries that write checkpoints and shards report system errors only as text
    text = str(error)
    full = "No space left" in text or "File too large" in text or ("RESOURCE_EXHAUSTED" in text and "writing" in text)
    number = error.errno if isinstance(error, OSError) else errno.ENOSPC if full else None
    if number not in _DISK:
        return None
    where = f" of {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return (
        f"the disk{where} {_DISK[number]}; finished files are intact: free some space, and run the same command to"
        " continue"
    )


def _explain_memory(error: BaseException, config: ConfigDict | None, mode: str) -> str:
    size = re.search(r"allocat\w* ([\d.]+ ?[KMGT]i?B|\d+ bytes)", str(error))
    problem = f"the memory is used up (one allocation of {size[1]} failed)" if size else "the memory is used up"
    return f"{problem}; {' or '.join(_advice(config, mode))}"


def _advice(config: ConfigDict | None, mode: str) -> list[str]:
    """Settings that make the program of `mode` need less memory, the best first."""
    if mode == "segment":
        return ["set a smaller --batch", "make the images smaller"]
    if config is None or mode not in ("train", "embed"):
        return ["set a smaller --config.eval.short_side", "use a device with more memory"]
    advice = []
    batch, parts = config.batch_size, config.optimizer.accumulate
    chunk = config.teacher.chunk if "teacher" in config else 1
    caching = "teacher" in config and config.teacher.source == "cache"
    if mode == "train" and "teacher" in config:
        more = next((n for n in range(2 * parts, batch + 1) if batch % n == 0), None)
        advice += [f"set --config.optimizer.accumulate={more}, which changes no result"] if more else []
    if mode == "embed" or caching or chunk != 1:
        smaller = max(1, (chunk or (32 if mode == "embed" or caching else batch)) // 2)
        advice += [f"set --config.teacher.chunk={smaller}, which changes no result"] if smaller != chunk else []
    if mode == "train" and batch > 1:
        advice.append(f"set a smaller --config.batch_size (it is {batch})")
    return advice or ["use devices with more memory"]
