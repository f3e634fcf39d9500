"""GroupViT as a way to segment."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, UInt8

from zeroseg_jax.distill.losses import unit
from zeroseg_jax.models.groupvit_encoder import GroupViTEncoder
from zeroseg_jax.segment.inference import Encoding, Renaming


class GroupViTMethod:
    """The segment tokens of a GroupViT's last stage, and the product of its stages' soft maps.

    As in transformers' `output_segmentation`. The authors' own evaluation differs; it is `Readout(rule="groupvit")`.
    """

    def __init__(self, encoder: GroupViTEncoder):
        self._model, self.params = nnx.split(encoder.model)
        self._normalise = encoder.normalise
        self.image_size = encoder.model.config.vision.image_size
        self.patch_size = encoder.model.config.vision.patch_size

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], renaming: Renaming | None) -> Encoding:
        del renaming  # there is no teacher
        pixels = self._normalise(images.astype(jnp.float32) / 255)
        output = nnx.merge(self._model, params).segments(pixels)
        return Encoding(unit(output.segments), output.assignment, unit(output.image))
