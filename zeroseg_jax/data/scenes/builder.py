"""Writes the procedural scenes as the TFDS dataset `zeroseg_scenes`, in ArrayRecord files and without TensorFlow."""

import contextlib
import hashlib
import io
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from zeroseg_jax.data.scenes import categories, materials, render
from zeroseg_jax.data.scenes.render import NAMES, SIZE, scene
from zeroseg_jax.data.sources.folder import hidden
from zeroseg_jax.data.workers import follow_parent, starting_workers
from zeroseg_jax.errors import InputError

SIZES: dict[str, dict[str, int]] = {
    "default": {"train": 3000, "validation": 200, "test": 300, "composition": 200},
    "tiny": {"train": 64, "validation": 16, "test": 16, "composition": 16},
}
"""Numbers of scenes in the splits of each config."""

_CHUNK = 128
"""Number of scenes that a process draws for one task."""


class ZerosegScenes(tfds.core.GeneratorBasedBuilder):
    """Scenes with exact masks and captions. Example `i` of a split is `render.scene(i, split)`.

    Its features are `image` (96, 96, 3) and `segmentation` (96, 96, 1), both uint8 in PNG, and the text `caption`. The
    values of a mask are indices into `render.NAMES`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SIZES]  # noqa: RUF012 (TFDS wants a list)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
            "segmentation": tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png"),
            "caption": tfds.features.Text(),
        }
        description = f"Procedural scenes; mask values: {', '.join(f'{i} {name}' for i, name in enumerate(NAMES))}."
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # the number of an example is the seed of its scene
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # there is nothing to download
        sizes = SIZES[self.builder_config.name]
        return {split: self._generate_examples(split, count) for split, count in sizes.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        from zeroseg_jax.progress import ProgressBar  # imports JAX, which the drawing processes do not need

        bar = ProgressBar(f"draw scenes, {split}", count)
        for i, example in enumerate(_draw_all(split, count)):
            bar.update(i + 1)
            yield i, example
        bar.close()


def prepare(root: str | Path = "", config: str = "default") -> Path:
    """Draws the scenes into a folder below `root` if it does not exist, and returns that TFDS data folder.

    The folder's name contains a digest of the drawing code, so changed code draws again. The folder appears only when
    it is complete. Several processes may prepare it at the same time, and the first one to finish counts. A process
    that is killed leaves no folder.

    Args:
        root: an empty or new folder, or one that contains only scenes; "" means `~/.cache/zeroseg_jax`.
        config: a key of `SIZES`.

    Raises:
        InputError: there is no such config, `root` contains other things than scenes, or it cannot be written.
    """
    if config not in SIZES:
        raise InputError(f"there are no scenes {config!r}; data.source must be scenes/ and one of {', '.join(SIZES)}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "zeroseg_jax"
    try:
        root = Path(root).expanduser() if root else cache
        final = root / f"scenes-{config}-{_digest()}"
        if final.is_dir():
            return final
        if root != cache:
            _check_root(root)
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".scenes-", dir=root))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home folder; ValueError: a null byte
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"the scenes cannot be written to {str(root)!r} ({reason}); set another folder") from error
    try:
        logging.info("drawing %d scenes into %s", sum(SIZES[config].values()), final)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it downloads something
            ZerosegScenes(data_dir=str(scratch), config=config).download_and_prepare(file_format="array_record")
        scratch.chmod(0o755)  # mkdtemp allows only its owner
        _publish(scratch, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def _check_root(root: Path) -> None:
    """Raises InputError if `root` contains anything but scenes, for example a user's photographs."""
    if not root.is_dir():
        return
    foreign = sorted(name for name in os.listdir(root) if not (name.startswith("scenes-") or hidden(name)))
    if foreign:
        raise InputError(
            f"{root} contains other things than scenes ({foreign[0]}{', ...' if len(foreign) > 1 else ''}); with the"
            " source scenes, the root is the folder in which scenes are stored; for your own images set"
            " data.source=folder (eval.dataset=folder), or leave the root empty to use ~/.cache/zeroseg_jax"
        )


def _publish(scratch: Path, final: Path) -> None:
    try:
        scratch.rename(final)
    except OSError:  # a folder with files is not replaced, so another process was faster
        if not final.is_dir():
            raise


def _digest() -> str:
    """A digest of the drawing code."""
    files = (__file__, render.__file__, categories.__file__, materials.__file__)
    code = b"".join(Path(file).read_bytes() for file in files)
    return hashlib.sha256(code).hexdigest()[:8]


def _draw_all(split: str, count: int) -> Iterator[dict[str, Any]]:
    """Scenes 0 to `count` - 1 in order. Many scenes are drawn by several processes."""
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    draw = partial(_draw_chunk, split)
    cores = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
    if cores == 1 or len(chunks) <= 2 * cores or multiprocessing.current_process().daemon:
        for chunk in chunks:
            yield from draw(chunk)
        return
    # "spawn", because forking a process in which JAX has threads can hang
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, mp_context=spawn, initializer=follow_parent) as pool:
        with starting_workers():
            parts = pool.map(draw, chunks)
        for drawn in parts:
            yield from drawn


def _draw_chunk(split: str, seeds: Iterable[int]) -> list[dict[str, Any]]:
    drawn = []
    for seed in seeds:
        s = scene(seed, split)
        drawn.append({"image": _png(s.image), "segmentation": _png(s.mask), "caption": s.caption})
    return drawn


def _png(pixels: Any) -> bytes:
    """The bytes of a PNG. TFDS would need TensorFlow to encode an array."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
