"""Reads batches ahead, with worker processes and threads, in bounded memory.

A worker does not make whole batches. It makes chunks, equal parts of a batch, which the main process joins. So all
workers work on the first batch, and what is in flight takes the same memory whatever the batch size. The batches do not
depend on the number of workers or the size of the chunks.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
from absl import flags

from zeroseg_jax.data.workers import follow_parent
from zeroseg_jax.errors import InputError

Batch = dict[str, np.ndarray]

CHUNK_BYTES = 4 << 20
"""Largest memory of a chunk."""
THREADS = 16
"""Threads of each worker. They wait for reads at the same time: at 30 ms a read, 500 reads a second."""
QUEUED = 1
"""Chunks that each worker keeps ready for the main process. Its threads prepare more."""
SHARED_MEMORY = Path("/dev/shm")
_SMALL = 1 << 14
"""Smaller arrays go through a pipe, larger ones through shared memory."""


class ReadAhead(Iterator[Batch]):
    """Joins examples, in their order, to batches.

    Close it after use, so that no worker or thread is left.

    Args:
        examples: dicts of arrays of equal shape; as many as a multiple of `batch_size`.
        batch_size: the examples of a batch.
        workers: worker processes; 0 reads in threads of this process.
        example_bytes: the memory that an example takes.

    Raises:
        InputError: the shared memory of this machine is too small for so many workers.
    """

    def __init__(self, examples: grain.MapDataset, batch_size: int, workers: int, example_bytes: int):
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which nobody parses in a notebook or a test
            flags.FLAGS.mark_as_parsed()
        self._batch_size = batch_size
        self._chunk = chunk_size(batch_size, workers, example_bytes)
        # between processes a chunk travels as a few arrays; in one process stacking them would only copy them once more
        chunks = examples.batch(self._chunk, batch_fn=_stacked if workers else list)
        ahead = chunks.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS))
        if workers:
            options = grain.experimental.DatasetOptions(min_shm_size=_SMALL)
            ahead = grain.experimental.WithOptionsIterDataset(ahead, options).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=QUEUED),
                worker_init_fn=follow_parent,
            )
        self._chunks = iter(ahead)

    def __next__(self) -> Batch:
        batch: Batch = {}
        for begin in range(0, self._batch_size, self._chunk):
            # copied at once, because the workers' shared memory is limited and must be freed before Python ends
            chunk = next(self._chunks)
            if isinstance(chunk, dict):
                self._copy(chunk, batch, slice(begin, begin + self._chunk))
            else:
                for i, example in enumerate(chunk, begin):
                    self._copy(example, batch, i)
        return batch

    def _copy(self, part: Batch, batch: Batch, place: int | slice) -> None:
        """Copies an example, or several that are stacked, to their place in the batch."""
        for name, array in part.items():
            if name not in batch:
                shape = array.shape[1:] if isinstance(place, slice) else array.shape
                batch[name] = np.empty((self._batch_size, *shape), array.dtype)
            batch[name][place] = array

    def close(self) -> None:
        """Ends workers and threads."""
        self._chunks.close()


def _stacked(examples: list[Batch]) -> Batch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def chunk_size(batch_size: int, workers: int, example_bytes: int) -> int:
    """The examples of a chunk: a divisor of `batch_size`.

    A chunk takes at most `CHUNK_BYTES`, and what is in flight at most half of the free shared memory.

    Raises:
        InputError: not even chunks of one example fit.
    """
    most = CHUNK_BYTES
    if workers and SHARED_MEMORY.is_dir():
        space = os.statvfs(SHARED_MEMORY)
        free = space.f_bavail * space.f_frsize
        # Each worker fills a queue and holds one more chunk. For each worker, grain has a thread in the main process
        # that does the same. A few chunks are being copied or freed.
        in_flight = workers * 2 * (QUEUED + 1) + 4
        share = free // 2 // in_flight
        if share < example_bytes:
            raise InputError(
                f"{SHARED_MEMORY} has {free >> 20} MiB free, and data.workers={workers} needs"
                f" {-(-2 * in_flight * example_bytes >> 20)} MiB there; give the machine or container more of it"
                " (docker run --shm-size, a memory volume in Kubernetes), or set data.workers lower or to 0"
            )
        most = min(most, share)
    return max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and (n == 1 or n * example_bytes <= most))
