"""CLIP with what surrounds it: tokenizer, image preprocessing, and the Hugging Face folder that holds all three.

SigLIP is one of the family here: whatever takes a CLIP takes it too.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIP, CLIPConfig
from zeroseg_jax.models.dual_encoder import (
    DualEncoder,
    check_pixels,
    check_tokenizer,
    load_preprocessing,
    load_tokenizer,
)
from zeroseg_jax.models.preprocessing import Preprocessing
from zeroseg_jax.models.siglip import Siglip, SiglipConfig
from zeroseg_jax.models.tokenizer_files import load_metaclip_2_tokenizer, load_siglip_tokenizer
from zeroseg_jax.models.weights.clip import CLIP_TABLE
from zeroseg_jax.models.weights.folder import read_json, read_tensors
from zeroseg_jax.models.weights.hub import find_folder
from zeroseg_jax.models.weights.siglip import SIGLIP_TABLE
from zeroseg_jax.models.weights.table import load_weights

FAMILIES = "clip", "metaclip_2", "siglip"
"""The `model_type`s of config.json that `load_clip` takes."""


class ClipEncoder(DualEncoder):
    """A CLIP or a SigLIP that takes images and texts as users have them."""

    model: CLIP | Siglip

    def __init__(self, model: CLIP | Siglip, tokenizer: Any = None, preprocessing: Preprocessing | None = None):
        if isinstance(model, Siglip):
            preprocessing = preprocessing or Preprocessing.whole(model.config.vision.image_size)
            self.table, self.image_processor = SIGLIP_TABLE, "SiglipImageProcessor"
        else:
            self.table = CLIP_TABLE
        super().__init__(model, tokenizer, preprocessing)
        self._dense = jax.jit(
            lambda graphdef, state, x, readout: nnx.merge(graphdef, state).dense(x, readout), static_argnums=(0, 3)
        )

    def dense(self, pixels: Array | np.ndarray, readout: str = "maskclip") -> Float[Array, "b h w d"]:
        """The embedding of every patch, float32, not unit length; `pixels` as for `vision`.

        `readout` is one of `models.readouts.READOUTS` for a CLIP. A SigLIP has only `maskclip`, which for it is our own
        reading (`Siglip.dense`). Raises InputError for a readout that the model does not have.
        """
        return self._dense(*nnx.split(self.model), check_pixels(pixels), readout)


def read_clip_config(source: str | Path) -> CLIPConfig | SiglipConfig:
    """The sizes of the CLIP or SigLIP in a Hugging Face folder or hub id.

    Raises InputError where it is out of reach or of another family.
    """
    return _read_config(find_folder(source))


def load_clip(source: str | Path, dtype: Any = None) -> ClipEncoder:
    """Loads a CLIP or a SigLIP from a Hugging Face folder or hub id.

    OpenAI's models, OpenCLIP/LAION conversions, MetaCLIP 1 and 2, SigLIP, and SigLIP 2 of a fixed resolution. `dtype`
    is the dtype of the computation (None: float32); parameters are float32 whatever the file holds. Raises InputError
    where the source is out of reach, of another family, or its weights do not fit its configuration exactly.
    """
    folder = find_folder(source)
    config = _read_config(folder)
    is_siglip, is_metaclip_2 = isinstance(config, SiglipConfig), config.text.pooled == "end"
    tensors = read_tensors(folder, "SiglipModel" if is_siglip else "MetaClip2Model" if is_metaclip_2 else "CLIPModel")
    table = SIGLIP_TABLE if is_siglip else CLIP_TABLE
    model = load_weights(lambda: make_model(config, dtype), tensors, table, str(source))
    read = load_siglip_tokenizer if is_siglip else load_metaclip_2_tokenizer if is_metaclip_2 else load_tokenizer
    tokenizer = check_tokenizer(read(folder), config.text.vocabulary, folder)
    own = Preprocessing.whole if is_siglip else Preprocessing.square
    return ClipEncoder(model, tokenizer, load_preprocessing(folder, config.vision.image_size, own))


def make_model(config: CLIPConfig | SiglipConfig, dtype: Any = None) -> CLIP | Siglip:
    """The bare module with random weights; `dtype` is the dtype of the computation (None: float32)."""
    if isinstance(config, SiglipConfig):
        return Siglip(config, rngs=nnx.Rngs(0), dtype=dtype)
    return CLIP(config, rngs=nnx.Rngs(0), dtype=dtype)


def _read_config(folder: Path) -> CLIPConfig | SiglipConfig:
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind == "siglip2":
        raise InputError(
            f"{folder / 'config.json'} is of a SigLIP 2 with a flexible resolution (NaFlex), which is not supported;"
            " take one of a fixed resolution, such as google/siglip2-base-patch16-224 or"
            " google/siglip2-so400m-patch14-384"
        )
    if kind not in FAMILIES:
        known = ", ".join(map(repr, FAMILIES))
        raise InputError(f"{folder / 'config.json'} has model_type {kind!r}, expected one of {known}")
    return SiglipConfig.from_hf(raw) if kind == "siglip" else CLIPConfig.from_hf(raw)
