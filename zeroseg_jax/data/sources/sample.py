"""Tries some images of a source, before a long computation starts on all of them."""

import concurrent.futures
import math

import numpy as np

from zeroseg_jax.data.decode import BrokenImage
from zeroseg_jax.data.sources.open import ImageSource
from zeroseg_jax.errors import InputError

SAMPLE = 256
"""Images that are decoded, spread over the source."""


def check_sample(source: ImageSource, max_broken_share: float) -> None:
    """Raises InputError where the sample shows that more than the allowed share of the images is broken.

    Of a source that is larger than the sample, four standard deviations more than that share are let pass.
    """
    count = min(len(source), SAMPLE)
    chosen = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()

    def reason(i: int) -> str:
        try:
            source[i]
        except BrokenImage as error:
            return f"{error.key} ({error.reason})"
        return ""

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        broken = list(filter(None, pool.map(reason, chosen)))
    allowed = max_broken_share * count
    if count < len(source):
        allowed += 4 * math.sqrt(allowed * (1 - max_broken_share))
    if len(broken) > allowed:
        raise InputError(
            f"{len(broken)} of {count} images that were tried cannot be read, such as {broken[-1]}: more than"
            f" data.max_broken_share={max_broken_share:g}; repair them, or allow a greater share"
        )
