"""What to say when a disk is full or a device's memory is: one sentence, with what to change."""

import contextlib
import errno
import re
from collections.abc import Iterator

from ml_collections import ConfigDict

from zeroseg_jax.errors import InputError

_DISK = {errno.ENOSPC: "is full", errno.EDQUOT: "quota is used up", errno.EFBIG: "takes no file of that size"}


@contextlib.contextmanager
def exhaustion_told(config: ConfigDict | None = None, mode: str = "") -> Iterator[None]:
    """Raises InputError, one sentence, in place of what libraries raise when a disk or a device's memory is full.

    `config` and `mode` are those of main.py, or `mode` is the name of another command; the settings that the sentence
    names depend on them.
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
    """The sentence for an error that comes of a full disk or memory, itself or by its causes; None for another."""
    for each in _chain(error):
        if told := _disk(each):
            return told
        if isinstance(each, MemoryError) or "RESOURCE_EXHAUSTED" in str(each):
            return _memory(each, config, mode)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _disk(error: BaseException) -> str | None:
    # the libraries behind checkpoints and shards tell of errors of the system in text
    said = str(error)
    full = "No space left" in said or "File too large" in said or ("RESOURCE_EXHAUSTED" in said and "writing" in said)
    number = error.errno if isinstance(error, OSError) else errno.ENOSPC if full else None
    if number not in _DISK:
        return None
    where = f" of {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return (
        f"the disk{where} {_DISK[number]}; what was finished is whole: free some space, and the same command goes on"
        " from there"
    )


def _memory(error: BaseException, config: ConfigDict | None, mode: str) -> str:
    asked = re.search(r"allocat\w* ([\d.]+ ?[KMGT]i?B|\d+ bytes)", str(error))
    what = f"the memory is used up (one allocation of {asked[1]} failed)" if asked else "the memory is used up"
    return f"{what}; {' or '.join(_settings(config, mode))}"


def _settings(config: ConfigDict | None, mode: str) -> list[str]:
    """What makes the program of `mode` smaller, the best first."""
    if mode == "segment":
        return ["set a smaller --batch", "make the images smaller"]
    if config is None or mode not in ("train", "embed"):
        return ["set a smaller --config.eval.short_side", "use a device with more memory"]
    found = []
    batch, parts = config.batch_size, config.optimizer.accumulate
    chunk = config.teacher.chunk if "teacher" in config else 1
    caching = "teacher" in config and config.teacher.source == "cache"
    if mode == "train" and "teacher" in config:
        more = next((n for n in range(2 * parts, batch + 1) if batch % n == 0), None)
        found += [f"set --config.optimizer.accumulate={more}, which changes no result"] if more else []
    if mode == "embed" or caching or chunk != 1:
        smaller = max(1, (chunk or (32 if mode == "embed" or caching else batch)) // 2)
        found += [f"set --config.teacher.chunk={smaller}, which changes no result"] if smaller != chunk else []
    if mode == "train" and batch > 1:
        found.append(f"set a smaller --config.batch_size (it is {batch})")
    return found or ["use devices with more memory"]
