"""Loads a CLIP or a SigLIP with its tokenizer and preprocessing, from every form in which it is published.

Everything that takes a CLIP also takes a SigLIP.
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
    PREPROCESSING_FILES,
    TOKENIZER_FILES,
    DualEncoder,
    check_pixels,
    check_tokenizer,
    load_preprocessing,
    load_tokenizer,
)
from zeroseg_jax.models.precision import check_dtype
from zeroseg_jax.models.preprocessing import Preprocessing
from zeroseg_jax.models.readouts import check_readout
from zeroseg_jax.models.siglip import Siglip, SiglipConfig
from zeroseg_jax.models.tokenizer import clip_tokenizer
from zeroseg_jax.models.tokenizer_files import load_metaclip_2_tokenizer, load_siglip_tokenizer
from zeroseg_jax.models.weights import folder as folders
from zeroseg_jax.models.weights import openclip
from zeroseg_jax.models.weights.clip import CLIP_TABLE
from zeroseg_jax.models.weights.folder import ModelFolder, open_folder
from zeroseg_jax.models.weights.siglip import SIGLIP_TABLE
from zeroseg_jax.models.weights.table import load_weights

FAMILIES = "clip", "metaclip_2", "siglip"
"""The values of `model_type` in config.json that `load_clip` accepts."""


class ClipEncoder(DualEncoder):
    """A CLIP or a SigLIP with its tokenizer and preprocessing. It encodes image files and strings."""

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
        check_readout(readout, self.model.readouts)
        return self._dense(*nnx.split(self.model), check_pixels(pixels), readout)


def read_clip_config(source: str | Path | ModelFolder) -> CLIPConfig | SiglipConfig:
    """The sizes of a CLIP or SigLIP. Only its configuration is fetched.

    Raises InputError if the source does not exist, cannot be reached, or is a model of another family.
    """
    folder = open_folder(source)
    form = form_of(folder)
    if form == "openclip":
        return openclip.read_openclip_config(folder)[0]
    if form == "state dict":
        return openclip.config_of_tensors(_without_prefix(folder.tensors()), folder.name)
    return _read_config(folder)


def form_of(folder: ModelFolder) -> str:
    """The form of a published CLIP: "openclip", "state dict" (a file without config), or config.json's `model_type`.

    If a folder has several forms with weights, Hugging Face's is used.
    """
    has_config = folder.find(folders.CONFIG) is not None
    model_type = folder.json(folders.CONFIG).get("model_type") if has_config else None
    openclip_weights = folder.file is not None and folder.file.name in openclip.WEIGHTS
    if model_type is not None and not openclip_weights and folder.has_weights():
        return str(model_type)
    if folder.find(folders.OPENCLIP_CONFIG) is not None:
        return "openclip"
    return "state dict" if folder.file is not None and not has_config else str(model_type)


def load_clip(source: str | Path | ModelFolder, dtype: Any = None) -> ClipEncoder:
    """Loads a CLIP or a SigLIP: OpenAI's models, OpenCLIP's, MetaCLIP 1 and 2, SigLIP, SigLIP 2 of fixed resolution.

    Args:
        source: a folder or hub id `owner/name[@revision]` in Hugging Face or OpenCLIP form, the shipped "demo", or a
            single weight file whose configuration is in the same folder.
        dtype: the dtype of the computation; None means float32. Parameters are always float32.

    Raises:
        InputError: the source does not exist, cannot be reached, or is a model of another family, or its weights do not
            fit its configuration exactly.
    """
    dtype, folder = check_dtype(dtype), open_folder(source)
    form = form_of(folder)
    if form == "openclip":
        return _load_openclip(folder, dtype)
    if form == "state dict":
        return _load_state_dict(folder, dtype)
    config = _read_config(folder)
    is_siglip, is_metaclip_2 = isinstance(config, SiglipConfig), config.text.pooled == "end"
    table = SIGLIP_TABLE if is_siglip else CLIP_TABLE
    model = load_weights(lambda: make_model(config, dtype), folder.tensors(), table, folder.name)
    read = load_siglip_tokenizer if is_siglip else load_metaclip_2_tokenizer if is_metaclip_2 else load_tokenizer
    tokenizer = check_tokenizer(read(folder.fetch(TOKENIZER_FILES)), config.text.vocabulary, folder.path)
    default = Preprocessing.whole if is_siglip else Preprocessing.square
    preprocessing = load_preprocessing(folder.fetch(PREPROCESSING_FILES), config.vision.image_size, default)
    return ClipEncoder(model, tokenizer, preprocessing)


def _load_openclip(folder: ModelFolder, dtype: Any) -> ClipEncoder:
    config, preprocessing = openclip.read_openclip_config(folder)
    tensors = openclip.to_hf_names(folder.tensors(openclip.WEIGHTS))
    model = load_weights(lambda: make_model(config, dtype), tensors, CLIP_TABLE, folder.name)
    tokenizer = load_tokenizer(folder.fetch(TOKENIZER_FILES)) or clip_tokenizer(config.text.context)
    return ClipEncoder(model, check_tokenizer(tokenizer, config.text.vocabulary, folder.path), preprocessing)


def _load_state_dict(folder: ModelFolder, dtype: Any) -> ClipEncoder:
    tensors = _without_prefix(folder.tensors())
    config = openclip.config_of_tensors(tensors, folder.name)
    model = load_weights(lambda: make_model(config, dtype), openclip.to_hf_names(tensors), CLIP_TABLE, folder.name)
    tokenizer = clip_tokenizer(config.text.context)
    return ClipEncoder(model, check_tokenizer(tokenizer, config.text.vocabulary, folder.path))


def _without_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without the prefix that distributed training adds to their names."""
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def make_model(config: CLIPConfig | SiglipConfig, dtype: Any = None) -> CLIP | Siglip:
    """The module with random weights. `dtype` is the dtype of the computation; None means float32."""
    if isinstance(config, SiglipConfig):
        return Siglip(config, rngs=nnx.Rngs(0), dtype=dtype)
    return CLIP(config, rngs=nnx.Rngs(0), dtype=dtype)


def _read_config(folder: ModelFolder) -> CLIPConfig | SiglipConfig:
    raw = folder.json(folders.CONFIG)
    model_type, where = raw.get("model_type"), folder.path / folders.CONFIG
    if model_type == "siglip2":
        raise InputError(
            f"{where} is of a SigLIP 2 with a flexible resolution (NaFlex), which is not supported;"
            " take one of a fixed resolution, such as google/siglip2-base-patch16-224 or"
            " google/siglip2-so400m-patch14-384"
        )
    if model_type not in FAMILIES:
        known = ", ".join(map(repr, FAMILIES))
        raise InputError(f"{where} has model_type {model_type!r}, expected one of {known}")
    return SiglipConfig.from_hf(raw) if model_type == "siglip" else CLIPConfig.from_hf(raw)
