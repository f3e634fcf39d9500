"""Segmenting images by words: `load` a model, then `Segmenter.segment`; or `python -m zeroseg_jax.segment`."""

from zeroseg_jax.segment.io import load, save
from zeroseg_jax.segment.options import Options
from zeroseg_jax.segment.result import SegmentResult
from zeroseg_jax.segment.segmenter import EncodedImage, Segmenter

__all__ = ["EncodedImage", "Options", "SegmentResult", "Segmenter", "load", "save"]
