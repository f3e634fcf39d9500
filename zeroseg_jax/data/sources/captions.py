"""The image-caption pairs that `train_clip` learns from: crops of drawn scenes, or a folder with captions."""

import dataclasses
import multiprocessing
from collections.abc import Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from zeroseg_jax.data.scenes.pairs import Pair, pairs
from zeroseg_jax.data.sources.open import Subset, open_source
from zeroseg_jax.data.workers import usable_cpus
from zeroseg_jax.errors import InputError
from zeroseg_jax.progress import ProgressBar


@dataclasses.dataclass(frozen=True)
class PairSource:
    """A random-access source of pairs, for `pipeline.train_iterator`."""

    images: Any
    """A list of arrays, or a source."""
    texts: list[str]
    """The caption of each item."""
    names: list[str]
    """The name of the one thing that an item shows. "" if it shows several."""

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, index: int) -> bytes | np.ndarray:
        return self.images[index] if isinstance(self.images, list) else self.images.read(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.images[index]
        return item if isinstance(item, dict) else {"image": item, "key": str(index)}

    def key(self, index: int) -> str:
        return str(index) if isinstance(self.images, list) else self.images.key(index)

    def text(self, index: int) -> str:
        return self.texts[index]

    def named(self) -> "PairSource":
        """The pairs that show a single thing. Its name is their caption."""
        indices = [i for i, name in enumerate(self.names) if name]
        names = [self.names[i] for i in indices]
        return PairSource(Subset(self, indices), names, names)


def open_pairs(config: ConfigDict, image_size: int) -> PairSource:
    """The pairs of the `data` group of a config.

    If `source` is "scenes", `config.scenes` scenes are drawn. If it is "folder", `root` needs a metadata.jsonl.

    Raises:
        InputError: the folder has images without captions, or the source is another one.
    """
    if config.source == "scenes":
        drawn = draw_pairs(range(config.scenes), "pairs", image_size)
        return PairSource([p.image for p in drawn], [p.text for p in drawn], [p.name for p in drawn])
    if config.source == "folder":
        source = open_source(config, config.split)
        texts = [source.text(i) or "" for i in range(len(source))]
        if not all(texts):
            raise InputError(
                f"{config.root} has no captions for {sum(not t for t in texts)} of its {len(texts)} images; a teacher"
                ' needs a metadata.jsonl with {"file_name": ..., "text": ...} on each line'
            )
        return PairSource(source, texts, [""] * len(texts))
    raise InputError(f"data.source {config.source!r} has no captions; a teacher trains on 'scenes' or a 'folder'")


def draw_pairs(seeds: Iterable[int], split: str, image_size: int) -> list[Pair]:
    """Draws a scene for each seed and cuts pairs from it, on all cores."""
    seeds = list(seeds)
    bar = ProgressBar("draw pairs", len(seeds))
    drawn: list[Pair] = []
    arguments = [(seed, split, image_size) for seed in seeds]
    # The parent has threads of JAX, so the workers are spawned and not forked.
    with multiprocessing.get_context("spawn").Pool(usable_cpus()) as pool:
        for done, of_scene in enumerate(pool.imap(_draw, arguments, chunksize=64), start=1):
            drawn += of_scene
            bar.update(done)
    bar.close()
    return drawn


def _draw(arguments: tuple[int, str, int]) -> list[Pair]:
    return pairs(*arguments)


def image_array(drawn: list[Pair]) -> np.ndarray:
    """The crops as one uint8 (N, S, S, 3) array."""
    return np.stack([p.image for p in drawn])
