"""The image-caption pairs that the tiny teacher learns from: crops of procedural scenes, or a captioned folder."""

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
    """A random-access source for `pipeline.train_iterator`; `texts[i]` is the caption of item i.

    `names[i]` is the caption that says nothing but the one thing that item i shows, or "" where it shows several.
    """

    images: Any
    texts: list[str]
    names: list[str]

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
        """The pairs that show a single thing, captioned with its bare name."""
        kept = [i for i, name in enumerate(self.names) if name]
        return PairSource(Subset(self, kept), [self.names[i] for i in kept], [self.names[i] for i in kept])


def open_pairs(config: ConfigDict, image_size: int) -> PairSource:
    """The pairs of `config.data`: `source` is `scenes` (`config.scenes` of them are drawn) or `folder`.

    Raises:
        InputError: the folder holds no metadata.jsonl with captions, or the source is another.
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
    raise InputError(f"data.source {config.source!r} holds no captions; a teacher trains on 'scenes' or a 'folder'")


def draw_pairs(seeds: Iterable[int], split: str, image_size: int) -> list[Pair]:
    """Draws scenes and cuts pairs from them, on all cores."""
    seeds = list(seeds)
    bar = ProgressBar("draw pairs", len(seeds))
    drawn: list[Pair] = []
    arguments = [(seed, split, image_size) for seed in seeds]
    # spawned, not forked: the parent has JAX's threads
    with multiprocessing.get_context("spawn").Pool(usable_cpus()) as pool:
        for done, found in enumerate(pool.imap(_draw, arguments, chunksize=64), start=1):
            drawn += found
            bar.update(done)
    bar.close()
    return drawn


def _draw(arguments: tuple[int, str, int]) -> list[Pair]:
    return pairs(*arguments)


def image_array(drawn: list[Pair]) -> np.ndarray:
    """The crops as one uint8 (N, S, S, 3) array."""
    return np.stack([p.image for p in drawn])
