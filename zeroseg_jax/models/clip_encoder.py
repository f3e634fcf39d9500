"""CLIP with what surrounds it: tokenizer, image preprocessing, and the Hugging Face folder that holds all three."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zeroseg_jax.models.clip import CLIP, CLIPConfig
from zeroseg_jax.models.dual_encoder import DualEncoder, check_pixels, load_preprocessing, load_tokenizer
from zeroseg_jax.models.preprocessing import Preprocessing
from zeroseg_jax.models.weights.clip import CLIP_TABLE
from zeroseg_jax.models.weights.folder import read_config, read_tensors
from zeroseg_jax.models.weights.hub import find_folder
from zeroseg_jax.models.weights.table import load_weights


class ClipEncoder(DualEncoder):
    """A CLIP that takes images and texts as users have them."""

    model: CLIP
    table = CLIP_TABLE

    def __init__(self, model: CLIP, tokenizer: Any = None, preprocessing: Preprocessing | None = None):
        super().__init__(model, tokenizer, preprocessing)
        self._dense = jax.jit(lambda graphdef, state, x: nnx.merge(graphdef, state).dense(x), static_argnums=0)

    def dense(self, pixels: Array | np.ndarray) -> Float[Array, "b h w d"]:
        """MaskCLIP's embedding of every patch (`CLIP.dense`), float32, not unit length; `pixels` as for `vision`."""
        return self._dense(*nnx.split(self.model), check_pixels(pixels))


def read_clip_config(source: str | Path) -> CLIPConfig:
    """The sizes of the CLIP in a Hugging Face folder or hub id; raises InputError where it is out of reach or no
    CLIP."""
    return CLIPConfig.from_hf(read_config(find_folder(source), "clip"))


def load_clip(source: str | Path, dtype: Any = None) -> ClipEncoder:
    """Loads a CLIP from a Hugging Face folder or hub id (OpenAI, OpenCLIP/LAION conversions, MetaCLIP).

    `dtype` is the dtype of the computation (None: float32); parameters are float32 whatever the file holds. Raises
    InputError where the source is out of reach, no CLIP, or its weights do not fit its configuration exactly.
    """
    folder = find_folder(source)
    config = CLIPConfig.from_hf(read_config(folder, "clip"))
    make = lambda: CLIP(config, rngs=nnx.Rngs(0), dtype=dtype)  # noqa: E731
    model = load_weights(make, read_tensors(folder), CLIP_TABLE, str(source))
    tokenizer = load_tokenizer(folder, config.text.vocabulary)
    return ClipEncoder(model, tokenizer, load_preprocessing(folder, config.vision.image_size))
