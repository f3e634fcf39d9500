"""Images that went through the model, before any label is known."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.inference import Encoding
from zeroseg_jax.segment.prompts import Background, Templates
from zeroseg_jax.segment.readout import ENCODING
from zeroseg_jax.segment.result import SegmentResult
from zeroseg_jax.segment.windows import Layout


class EncodedView(NamedTuple):
    """What one pass of the model says of an image, at one size."""

    encoding: Encoding
    """Arrays of numpy; the first axis is that of the windows, row by row."""
    layout: Layout
    mirrored: bool
    """Whether it saw the mirror image of each window."""


@dataclass(frozen=True, repr=False)
class EncodedImage:
    """An image that went through the model once; `segment` costs only the labels' part."""

    pixels: UInt8[np.ndarray, "h w 3"]
    views: tuple[EncodedView, ...]
    _segmenter: Any

    @property
    def embeddings(self) -> Float32[np.ndarray, "s d"]:
        """Each segment (of each window of the first view) in CLIP's space, unit length."""
        found: Any = self.views[0].encoding.embeddings
        return found.reshape(-1, found.shape[-1])

    @property
    def assignment(self) -> Float32[np.ndarray, "v n s"] | None:
        """Share of each patch of each window in each of its segments, row-major; None where every patch is a segment of
        its own."""
        found: Any = self.views[0].encoding.assignment
        return found

    def __repr__(self) -> str:
        height, width = self.pixels.shape[:2]
        what = "patches" if self.assignment is None else "segments"
        return f"EncodedImage({width}x{height}: {len(self.embeddings)} {what})"

    def segment(
        self,
        labels: Iterable[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> SegmentResult:
        """As `Segmenter.segment`; `options` are those that do not count for encoding, such as `mix` and `guide`."""
        for name in options:
            if name in ENCODING:
                raise InputError(f"{name} counts when an image is encoded; give it to encode instead of to segment")
        return self._segmenter.label([self], labels, templates=templates, background=background, **options)[0]


def stack(windows: list[Encoding]) -> Encoding:
    """The encoding of all windows of an image."""
    return jax.tree.map(lambda *x: np.stack(x), *windows)
