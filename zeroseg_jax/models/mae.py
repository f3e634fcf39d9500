"""MAE (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners"): masking, encoder and decoder.

The encoder sees only the visible patches, and the decoder predicts the pixels of the hidden ones. Sizes and names
follow the published checkpoints (ViT-B/L/H), which `weights.mae.load_mae` reads.
"""

from math import isqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.layers import Remat, Transformer, linear, sincos_positions
from zeroseg_jax.ops.layer_norm import layer_norm

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalise(images: Float[Array, "b y x 3"]) -> Float[Array, "b y x 3"]:
    """Normalises images in [0, 1] with ImageNet's mean and standard deviation, as MAE's checkpoints expect it."""
    return (images - IMAGENET_MEAN) / IMAGENET_STD


def patch_grid(images: Float[Array, "b y x 3"], patch_size: int) -> tuple[int, int]:
    """The numbers of rows and columns of patches. Raises InputError if the size is not a multiple of the patch size."""
    height, width = images.shape[1:3]
    if height % patch_size or width % patch_size or not height or not width:
        raise InputError(
            f"an image of {height}x{width} pixels is not divisible into patches of {patch_size}x{patch_size};"
            " resize it to multiples of the patch size"
        )
    return height // patch_size, width // patch_size


def patchify(images: Float[Array, "b y x 3"], patch_size: int) -> Float[Array, "b n k"]:
    """Cuts images into row-major patches, each flattened in the order row, column, channel. k = patch_size^2 * 3."""
    (h, w), p = patch_grid(images, patch_size), patch_size
    return images.reshape(-1, h, p, w, p, 3).swapaxes(2, 3).reshape(images.shape[0], h * w, p * p * 3)


class Masking(NamedTuple):
    """The visible and the hidden patches of each image."""

    visible: Int[Array, "b k"]
    """Indices of the visible patches, in the order of the encoder's input."""
    restore: Int[Array, "b n"]
    """Index of each patch in the sequence of all visible patches, followed by all hidden ones."""
    mask: Float[Array, "b n"]
    """1 where a patch is hidden, 0 where it is visible."""


def random_masking(noise: Float[Array, "b n"], mask_ratio: float) -> Masking:
    """Shows the int(n (1 - mask_ratio)) patches of each image that have the least noise."""
    n = noise.shape[1]
    count = int(n * (1 - mask_ratio))
    shuffle = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(shuffle, axis=1)
    return Masking(
        shuffle[:, :count].astype(jnp.int32), restore.astype(jnp.int32), (restore >= count).astype(jnp.float32)
    )


def take_patches(x: Float[Array, "b n d"], indices: Int[Array, "b m"]) -> Float[Array, "b m d"]:
    """`x[b, indices[b, m]]`. An index past the end gives the last patch."""
    return jnp.take_along_axis(x, indices[..., None], axis=1, mode="clip")


@jax.custom_vjp
def put_patches(x: Float[Array, "b k d"], masking: Masking) -> Float[Array, "b n d"]:
    """Puts the visible patches back to their positions. The values at hidden positions are arbitrary.

    The gradient is a gather by the visible indices. JAX's default would be a scatter-add, which needs a sort on TPUs.
    """
    return take_patches(x, masking.restore)


def _put_forwards(x: Array, masking: Masking) -> tuple[Array, Masking]:
    return put_patches(x, masking), masking


def _put_backwards(masking: Masking, gradient: Array) -> tuple[Array, None]:
    return take_patches(gradient, masking.visible), None


put_patches.defvjp(_put_forwards, _put_backwards)


class Encoder(nnx.Module):
    """A pre-norm ViT with a class token and fixed sin-cos positions. It sees only the visible patches.

    Images may have any size that is a multiple of the patch size. The position function is evaluated at the centres of
    the patches, in coordinates of the grid of `image_size`.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        *,
        norm_eps: float = 1e-6,
        dtype: Any = None,
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        self.patch_size, self.grid = patch_size, image_size // patch_size
        self.patch_embedding = linear(patch_size**2 * 3, width, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        options: dict[str, Any] = {"norm_eps": norm_eps, "dtype": dtype, "remat": remat, "rngs": rngs}
        self.transformer = Transformer(depth, width, heads, 4 * width, **options)
        self.norm = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "b y x 3"], visible: Int[Array, "b k"] | None = None
    ) -> Float[Array, "b m d"]:
        """Normed class token and patches, m = 1 + k. `images` are normalised. `visible=None` means all patches."""
        patches = patchify(images, self.patch_size)
        grid = patch_grid(images, self.patch_size)
        table = jnp.asarray(sincos_positions(*grid, self.class_token.shape[0], (self.grid, self.grid)))
        if visible is not None:  # before the embedding, so that hidden patches cost nothing
            patches = take_patches(patches, visible)
            table = table[visible]
        x = self.patch_embedding(patches)
        x = x + table.astype(x.dtype)
        shape = x.shape[0], 1, x.shape[-1]
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), shape)  # its position is 0
        x, _ = self.transformer(jnp.concatenate([first, x], axis=1))
        return self.norm(x)


class Decoder(nnx.Module):
    """Reconstructs the pixels of all patches from the encoded visible ones."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        *,
        norm_eps: float = 1e-6,
        dtype: Any = None,
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        self.grid = image_size // patch_size
        self.embedding = linear(encoder_width, width, dtype=dtype, rngs=rngs)
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        options: dict[str, Any] = {"norm_eps": norm_eps, "dtype": dtype, "remat": remat, "rngs": rngs}
        self.transformer = Transformer(depth, width, heads, 4 * width, **options)
        self.norm = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)
        self.prediction = linear(width, patch_size**2 * 3, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "b m d"], masking: Masking, grid: tuple[int, int]) -> Float[Array, "b n k"]:
        """Predicted pixels of each patch in the order of `patchify`, normalised per patch; float32.

        `tokens` are the encoder's output, class token first. `grid` is (rows, columns) of patches; rows * columns = n.
        """
        x = self.embedding(tokens)
        hidden = masking.mask[..., None] > 0
        patches = jnp.where(hidden, self.mask_token[...].astype(x.dtype), put_patches(x[:, 1:], masking))
        patches = patches + jnp.asarray(sincos_positions(*grid, x.shape[-1], (self.grid, self.grid)), x.dtype)
        x, _ = self.transformer(jnp.concatenate([x[:, :1], patches], axis=1))
        return self.prediction(self.norm(x[:, 1:])).astype(jnp.float32)


def pixel_targets(images: Float[Array, "b y x 3"], patch_size: int) -> Float[Array, "b n k"]:
    """The decoder's targets for images in [0, 1]: each patch normalised by its mean and unbiased standard deviation."""
    patches = patchify(normalise(images.astype(jnp.float32)), patch_size)
    variance = patches.var(axis=-1, ddof=1, keepdims=True)
    return (patches - patches.mean(axis=-1, keepdims=True)) * jax.lax.rsqrt(variance + 1e-6)


def reconstruction_loss(
    reconstruction: Float[Array, "b n k"], images: Float[Array, "b y x 3"], mask: Float[Array, "b n"]
) -> Float[Array, ""]:
    """Mean squared error over the hidden patches (MAE, section 3); 0 if no patch is hidden."""
    targets = pixel_targets(images, isqrt(reconstruction.shape[-1] // 3))
    error = jnp.square(reconstruction.astype(jnp.float32) - targets).mean(axis=-1)
    return (error * mask).sum() / jnp.maximum(mask.sum(), 1)
