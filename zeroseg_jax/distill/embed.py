"""Embeds many images with the teacher, in order, on all devices. The next batches are read while one is computed."""

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float16, UInt8
from ml_collections import ConfigDict

from zeroseg_jax.chips import peak_flops
from zeroseg_jax.data.augment import Augmentation
from zeroseg_jax.data.pipeline import ordered_batches
from zeroseg_jax.data.sources.open import ImageSource
from zeroseg_jax.distill.model_flops import teacher_flops
from zeroseg_jax.distill.teacher import Teacher
from zeroseg_jax.progress import ProgressBar

IN_FLIGHT = 2
"""Batches that are sent to the devices before the result of the oldest is read. So no device waits for data."""


@dataclasses.dataclass(frozen=True)
class Embedded:
    """The embeddings of one crop of an image: of the crop as it is and, with `data.flip`, of its mirror image."""

    embeddings: Float16[np.ndarray, "f v d"]
    """f forms (as it is, mirrored), v views, of unit length. NaN for a broken image."""
    valid: bool


def embed_in_order(
    teacher: Teacher, source: ImageSource, config: ConfigDict, augmentation: Augmentation, images: Sequence[int]
) -> Generator[Embedded, None, None]:
    """The embeddings of each crop of `images`, in this order, on all devices of this process. Shows a progress bar.

    Args:
        augmentation: `stored_crops` is the number of crops of an image.
        images: indices into `source`.
    """
    forms = 2 if config.data.flip else 1
    devices = Mesh(np.array(jax.local_devices()), ("data",))
    split = NamedSharding(devices, P("data"))

    @jax.jit
    @partial(jax.shard_map, mesh=devices, in_specs=(P(), split.spec), out_specs=split.spec, check_vma=False)
    def embed(params: Any, images: UInt8[Array, "b y x 3"]) -> Float[Array, "b f v d"]:
        both = jnp.stack([images, images[:, :, ::-1]][:forms], axis=1)
        embeddings = teacher.embed(params, both.reshape(-1, *images.shape[1:]))
        return embeddings.reshape(len(images), forms, *embeddings.shape[1:]).astype(jnp.float16)

    params = jax.device_put(teacher.params, NamedSharding(devices, P()))
    batches = ordered_batches(
        source,
        batch_size=(config.teacher.chunk or 32) * devices.size,
        augmentation=augmentation,
        images=images,
        workers=config.data.workers,
        max_broken_share=1.0,  # the caller counts broken images
    )
    flops = forms * teacher_flops(teacher.sizes, teacher.boxes, config.image_size, config.views.local_size)
    speed = Speed(len(images) * max(augmentation.stored_crops, 1), flops)
    running: deque[tuple[dict[str, np.ndarray], jax.Array]] = deque()

    def finished() -> Iterator[Embedded]:
        batch, arrays = running.popleft()
        embeddings = np.array(arrays)  # waits for the devices
        real = batch["index"] >= 0  # the other images are padding
        embeddings[~batch["valid"]] = np.nan
        speed.update(int(real.sum()))
        for embedding, valid in zip(embeddings[real], batch["valid"][real], strict=True):
            yield Embedded(embedding, bool(valid))

    with contextlib.closing(batches), contextlib.closing(speed):
        for batch in batches:
            arrays = embed(params, jax.device_put(batch["image"], split))
            arrays.copy_to_host_async()
            running.append((batch, arrays))
            if len(running) > IN_FLIGHT:
                yield from finished()
        while running:
            yield from finished()


class Speed:
    """A progress bar with images per second, FLOPs per second, and their share of the chips' peak if it is known."""

    def __init__(self, total: int, flops: int | float):
        self.flops, self.peak = flops, peak_flops(jax.local_devices())
        self._done = 0
        self._first: tuple[int, float] | None = None
        self._bar = ProgressBar("embed", total)

    def update(self, images: int, now: float | None = None) -> str:
        """Counts `images` more images, and returns the text of the bar."""
        now = time.monotonic() if now is None else now
        self._done += images
        note = f"images  {readable_flops(self.flops)} an image"
        if self._first is None:  # the first batch includes the time of the compilation
            self._first = self._done, now
        else:
            rate = (self._done - self._first[0]) / max(now - self._first[1], 1e-9)
            note = f"images  {rate:.1f} images/s  {readable_flops(rate * self.flops)}/s"
            note += f" = {rate * self.flops / self.peak:.0%} of the peak" if self.peak else ""
            note += f"  ({readable_flops(self.flops)} an image)"
        self._bar.update(self._done, note)
        return note

    def close(self) -> None:
        self._bar.close()


def readable_flops(flops: int | float) -> str:
    """A text such as "4.86 TFLOP"."""
    power = int(math.log10(max(flops, 1)) / 3 + 1e-9)
    return f"{flops / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z')[power]}FLOP"
