"""Loads a GroupViT with its tokenizer and preprocessing from a Hugging Face folder."""

from pathlib import Path
from typing import Any

from flax import nnx

from zeroseg_jax.models.dual_encoder import (
    PREPROCESSING_FILES,
    TOKENIZER_FILES,
    DualEncoder,
    check_tokenizer,
    load_preprocessing,
    load_tokenizer,
)
from zeroseg_jax.models.groupvit import GroupViT, GroupViTConfig
from zeroseg_jax.models.precision import check_dtype
from zeroseg_jax.models.preprocessing import Preprocessing
from zeroseg_jax.models.weights.folder import ModelFolder, open_folder
from zeroseg_jax.models.weights.groupvit import groupvit_table
from zeroseg_jax.models.weights.table import load_weights


class GroupViTEncoder(DualEncoder):
    """A GroupViT with its tokenizer and preprocessing. It encodes image files and strings."""

    model: GroupViT

    def __init__(self, model: GroupViT, tokenizer: Any = None, preprocessing: Preprocessing | None = None):
        super().__init__(model, tokenizer, preprocessing)
        self.table = groupvit_table(model.config.vision)


def load_groupvit(source: str | Path | ModelFolder, dtype: Any = None) -> GroupViTEncoder:
    """Loads a GroupViT.

    Args:
        source: a Hugging Face folder or hub id, such as `nvidia/groupvit-gcc-yfcc`.
        dtype: the dtype of the computation; None means float32. Parameters are always float32.

    Raises:
        InputError: the source does not exist, cannot be reached or is not a GroupViT, or its weights do not fit its
            configuration exactly.
    """
    dtype, folder = check_dtype(dtype), open_folder(source)
    config = GroupViTConfig.from_hf(folder.config("groupvit"))
    make = lambda: GroupViT(config, rngs=nnx.Rngs(0), dtype=dtype)  # noqa: E731
    model = load_weights(make, folder.tensors(), groupvit_table(config.vision), folder.name)
    tokenizer = check_tokenizer(load_tokenizer(folder.fetch(TOKENIZER_FILES)), config.text.vocabulary, folder.path)
    return GroupViTEncoder(
        model, tokenizer, load_preprocessing(folder.fetch(PREPROCESSING_FILES), config.vision.image_size)
    )
