"""Batches of augmented images, made with grain. They are the same for any number of workers and processes.

The examples form one endless stream: epoch after epoch, each with its own order of the images, which depends on (seed,
epoch). All processes together take `batch_size * process_count` examples for a batch. Process p takes the p-th
`batch_size` of them. Batches do not stop at the end of an epoch. A position in the stream is one number, the same on
every host, so a run can be resumed anywhere in an epoch.

Another image replaces a broken one. It is drawn from (seed, epoch, index). A note about the broken image is part of the
example, so the main process counts broken images in the order of the batches.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from zeroseg_jax.data.augment import Augmentation, mirrored
from zeroseg_jax.data.decode import BrokenImage, EncodedImage, Picture
from zeroseg_jax.data.read_ahead import Batch, ReadAhead
from zeroseg_jax.data.sources.open import ImageSource
from zeroseg_jax.data.workers import resolve_workers, starting_workers
from zeroseg_jax.errors import InputError

_TRIES = 16
_NOTE = np.dtype([("index", np.int32), ("reason", "S200")])
_NO_NOTES = np.array([(-1, b"")] * _TRIES, _NOTE)
_ENDLESS = 1 << 40
"""More batches than any run has."""
_REPLACE, _SHUFFLE = 1, 2
"""Make the random numbers of one (seed, epoch) differ between uses."""


@functools.lru_cache(maxsize=2)  # two, because batches before and after the end of an epoch are made at the same time
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the images in an epoch, int (count,).

    Not grain's own shuffle: that takes 0.1 ms an image, and gives seed 1 what it gives seed 0 one epoch later.
    """
    return np.random.default_rng((seed, epoch, 0, _SHUFFLE)).permutation(count)


class _Loader:
    """Makes the example at a position of the stream. `cache_bytes` limits the prepared images that stay in memory."""

    def __init__(self, source: ImageSource, augmentation: Augmentation, cache_bytes: int):
        self.source, self.augmentation = source, augmentation
        self._cache: dict[int, Picture] = {}
        self._room = cache_bytes

    def pixels(self, index: int, epoch: int) -> tuple[np.ndarray, bool]:
        """Image `index` as `epoch` shows it, and whether it is mirrored. May raise BrokenImage."""
        image = self._cache.get(index) or self._open(index)
        box, flip = self.augmentation.draw(image.extent, epoch, index)
        picture = image if isinstance(image, Picture) else image.decode(self.augmentation.reduction(box))
        pixels = self.augmentation.crop(picture, box)
        if index not in self._cache:
            self._keep(index, self.augmentation.reusable(picture, pixels))
        return mirrored(pixels) if flip else pixels, flip

    def _open(self, index: int) -> EncodedImage | Picture:
        data = self.source.read(index)
        return Picture(data, data.shape[:2], 1) if isinstance(data, np.ndarray) else EncodedImage(data, "")

    def _keep(self, index: int, picture: Picture | None) -> None:
        # Images come in random order, so the first ones are as good to keep as others.
        if picture is not None and picture.pixels.nbytes <= self._room:
            self._room -= picture.pixels.nbytes
            self._cache[index] = picture

    def training(self, position: int) -> Batch:
        """The example at `position` of the stream."""
        (epoch, place), seed = divmod(position, len(self.source)), self.augmentation.seed
        index = int(permutation(seed, epoch, len(self.source))[place])
        replacements = None
        notes, failures = _NO_NOTES, 0
        used = index
        while failures < _TRIES:
            try:
                image, flip = self.pixels(used, epoch)
                return _example(image, used, notes, epoch=np.int32(epoch), flip=np.bool_(flip))
            except BrokenImage as error:
                notes = _NO_NOTES.copy() if notes is _NO_NOTES else notes
                notes[failures] = (used, error.reason.encode()[:200])
                failures += 1
                replacements = replacements or np.random.default_rng((seed, epoch, index, _REPLACE))
                used = int(replacements.integers(len(self.source)))
        return _example(self._blank(), used, notes, epoch=np.int32(epoch), flip=np.bool_(False))

    def ordered(self, images: Sequence[int], position: int) -> Batch:
        """The example at `position` of the stored crops of `images`, those of an image one after the other.

        Positions past the end and broken images are not valid.
        """
        place, crop = divmod(position, max(self.augmentation.stored_crops, 1))
        if place >= len(images):
            return _example(self._blank(), -1, _NO_NOTES, valid=np.bool_(False))
        index = int(images[place])
        try:
            image, _ = self.pixels(index, crop)
            return _example(image, index, _NO_NOTES, valid=np.bool_(True))
        except BrokenImage as error:
            notes = _NO_NOTES.copy()
            notes[0] = (index, error.reason.encode()[:200])
            return _example(self._blank(), index, notes, valid=np.bool_(False))

    def _blank(self) -> np.ndarray:
        return np.zeros((self.augmentation.size, self.augmentation.size, 3), np.uint8)


def _position(next_index: int, batch_size: int, process_index: int, process_count: int, i: int) -> int:
    """The position in the stream of example `i` of a process that starts at position `next_index`."""
    batch, place = divmod(i, batch_size)
    return next_index + (batch * process_count + process_index) * batch_size + place


def _example_bytes(augmentation: Augmentation) -> int:
    """The memory that an example takes, rounded up."""
    return augmentation.size**2 * 3 + _NO_NOTES.nbytes + 1024


def _example(image: np.ndarray, index: int, notes: np.ndarray, **rest: Any) -> Batch:
    return {"image": image, "index": np.int32(index), "notes": notes, **rest}


class _BrokenCount:
    """Counts the notes of broken images, names each image once in the log, and aborts past the allowed share.

    The share is of the images read by this process since it started, or of its part of one epoch while fewer were read.
    """

    def __init__(self, source: ImageSource, share: float, process_count: int, log: Callable[[str], None]):
        self.images: dict[int, str] = {}
        self._source, self._share, self._log = source, share, log
        self._epoch = len(source) / process_count
        self._read = self._broken = 0

    def take(self, batch: Batch) -> Batch:
        """Removes the notes from `batch` and counts them."""
        notes = batch.pop("notes")
        broken = notes[notes["index"] >= 0]
        self._read += len(notes) + len(broken)
        self._broken += len(broken)
        for note in broken:
            index, reason = int(note["index"]), note["reason"].decode(errors="replace")
            if index not in self.images:
                self.images[index] = reason
                self._log(f"skipping the broken image {self._source.key(index)} ({reason}); {len(self.images)} so far")
        if (notes["index"] >= 0).all(axis=1).any():
            raise InputError(f"{_TRIES} images in a row cannot be read, {self._last()}; repair the data set")
        if self._broken > self._share * max(self._read, self._epoch):
            raise InputError(
                f"{len(self.images)} of the {len(self._source)} images cannot be read, {self._last()}: more than"
                f" data.max_broken_share={self._share:g} of those read so far; repair them, or allow a greater share"
            )
        return batch

    def _last(self) -> str:
        index, reason = list(self.images.items())[-1]
        return f"the last of them {self._source.key(index)} ({reason})"


class TrainIterator(Iterator[Batch]):
    """What `train_iterator` returns."""

    def __init__(self, start: Callable[[int], ReadAhead], stride: int, count: _BrokenCount):
        self._start, self._stride, self._count = start, stride, count
        self.waited = 0.0
        """Seconds that the caller of `next` has waited so far."""
        self._next_index = 0
        self._batches: ReadAhead | None = None

    def __next__(self) -> Batch:
        since = time.perf_counter()
        try:
            if self._batches is None:
                with starting_workers():
                    self._batches = self._start(self._next_index)
                    batch = next(self._batches)
            else:
                batch = next(self._batches)
            batch = self._count.take(batch)
        except BaseException:
            self.close()  # else the workers would outlive the run that fails
            raise
        self._next_index += self._stride
        self.waited += time.perf_counter() - since
        return batch

    @property
    def broken(self) -> dict[int, str]:
        """Index and reason of every broken image that this process has read."""
        return dict(self._count.images)

    def get_state(self) -> dict[str, int]:
        """The position after the last batch, as values for JSON. It is the same on every process."""
        return {"next_index": self._next_index}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position, also one saved with another number of workers."""
        self.close()
        self._next_index = int(state["next_index"])

    def close(self) -> None:
        """Ends workers and threads. The iterator can be used again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def __enter__(self) -> "TrainIterator":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def train_iterator(
    source: ImageSource,
    *,
    batch_size: int,
    augmentation: Augmentation,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    max_broken_share: float = 0.05,
    cache_bytes: int = 1 << 30,
    log: Callable[[str], None] = logging.warning,
) -> TrainIterator:
    """An endless iterator over shuffled, augmented batches.

    Each batch is `{"image": uint8 (B, S, S, 3), "index": int32 (B,), "epoch": int32 (B,), "flip": bool (B,)}`; `index`
    is the image that was used, `flip` says whether it is mirrored. Close the iterator after use.

    Args:
        batch_size: B, of this process.
        workers: worker processes; 0 reads in threads of this process, -1 chooses by the processors. The batches do not
            depend on it.
        process_index, process_count: which part of the batches is made here, and the number of parts.
        max_broken_share: a run past this share of broken images aborts.
        cache_bytes: memory for images kept between epochs, of all workers together: decoded, and resized where nothing
            is cropped.
        log: called with a sentence for every broken image, once each.

    Raises:
        InputError: an empty source; from `next`, too many broken images, or too little shared memory for the workers.
    """
    if not len(source):
        raise InputError("the data set is empty; there is nothing to train on")
    workers = resolve_workers(workers)
    loader = _Loader(source, augmentation, cache_bytes // max(workers, 1))

    def start(next_index: int) -> ReadAhead:
        part = functools.partial(_position, next_index, batch_size, process_index, process_count)
        examples = grain.MapDataset.range(_ENDLESS * batch_size).map(part).map(loader.training)
        return ReadAhead(examples, batch_size, workers, _example_bytes(augmentation))

    count = _BrokenCount(source, max_broken_share, process_count, log)
    return TrainIterator(start, batch_size * process_count, count)


def ordered_batches(
    source: ImageSource,
    *,
    batch_size: int,
    augmentation: Augmentation,
    images: Sequence[int] | None = None,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    max_broken_share: float = 0.05,
    log: Callable[[str], None] = logging.warning,
) -> Generator[Batch, None, None]:
    """One pass in order over `images` (all, if None): over the stored crops of each, or the whole of each, unmirrored.

    Each batch is `{"image": uint8 (B, S, S, 3), "index": int32 (B,), "valid": bool (B,)}`. Process p gets every
    `process_count`-th example from the p-th on; all get equally many batches of equal shape, filled up with black
    images of index -1. These, and broken images, are not `valid`.

    Raises:
        InputError: too many broken images.
    """
    loader = _Loader(source, dataclasses.replace(augmentation, flip=False), cache_bytes=0)
    images = range(len(source)) if images is None else images
    count = len(images) * max(augmentation.stored_crops, 1)
    rounds = -(-count // (batch_size * process_count))
    positions = grain.MapDataset.source(range(rounds * batch_size * process_count))
    share = positions[process_index::process_count].map(functools.partial(loader.ordered, images))
    broken = _BrokenCount(source, max_broken_share, process_count, log)
    batches = ReadAhead(share, batch_size, resolve_workers(workers), _example_bytes(augmentation))
    try:
        with starting_workers():
            first = list(itertools.islice(batches, 1))
        for batch in itertools.chain(first, batches):
            yield broken.take(batch)
    finally:
        batches.close()
