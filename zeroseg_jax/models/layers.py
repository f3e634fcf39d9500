"""Transformer layers shared by the CLIP towers, the MAE student, the segment decoder and GroupViT.

All of them are pre-norm (Dosovitskiy et al. 2021). They differ in the activation, in the epsilon of the norms, and in
which tokens attend to which. Parameters are float32; `dtype` is the dtype of the computation. Softmax and the norms'
statistics are always float32.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from zeroseg_jax.errors import InputError
from zeroseg_jax.ops.attention import attend
from zeroseg_jax.ops.flash_attention import flash_attend
from zeroseg_jax.ops.layer_norm import layer_norm

Activation = Callable[[Array], Array]
Remat = Literal["none", "dots", "full"]
AttentionKind = Literal["plain", "cudnn"]
KeysAndValues = tuple[Float[Array, "b m d"], Float[Array, "b m d"]]
_DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def quick_gelu(x: Array) -> Array:
    """OpenAI CLIP's and MetaCLIP's activation, `x * sigmoid(1.702 x)`."""
    return x * jax.nn.sigmoid(1.702 * x)


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """The exact GELU of torch, `x (1 + erf(x / sqrt 2)) / 2`, computed in float32; one array is kept for the gradient.

    float32 needs erfc for its last digits; for bfloat16 erf is as exact and cheaper. JAX's own gradient keeps several
    float32 arrays. Without this one, the gradient of the encoder's 12 blocks takes 23 % more cycles and 89 % more
    memory for temporaries, that of the decoder's 8 blocks 13 % and 63 % (64 images a chip, compiled for TPU v5e).
    """
    y = x.astype(jnp.float32)
    return (y * _normal_cdf(y, x.dtype)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return gelu(x), tangent * _gelu_slope(x)


def _gelu_slope(x: Array) -> Array:
    y = x.astype(jnp.float32)
    slope = _normal_cdf(y, x.dtype) + y * jnp.exp(-0.5 * y * y) * (2 * np.pi) ** -0.5
    return slope.astype(x.dtype)


def _normal_cdf(y: Array, dtype: Any) -> Array:
    if dtype == jnp.float32:
        return 0.5 * jax.lax.erfc(-y * 0.5**0.5)
    return 0.5 * (1 + jax.lax.erf(y * 0.5**0.5))


def tanh_gelu(x: Array) -> Array:
    """SigLIP's activation: the approximation of GELU by tanh."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Activation] = {"quick_gelu": quick_gelu, "gelu": gelu, "gelu_pytorch_tanh": tanh_gelu}
"""Activations by their names in Hugging Face configurations."""


def linear(inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Any = None, bias: bool = True) -> nnx.Linear:
    """A linear layer as ViT and MAE initialise it: Xavier-uniform kernel, zero bias."""
    return nnx.Linear(
        inputs, outputs, use_bias=bias, dtype=dtype, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs
    )


def with_kernels_in(dtype: Any, params: Any) -> Any:
    """A tree of parameters with the kernels in `dtype`. Norms, tokens, positions and biases are not changed."""
    return jax.tree_util.tree_map_with_path(lambda path, a: a.astype(dtype) if path[-1].key == "kernel" else a, params)


class MLP(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Activation = gelu,
        out: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.fc1 = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, width if out is None else out, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... e"]:
        return self.fc2(self.activation(self.fc1(x)))


class Attention(nnx.Module):
    """Multi-head attention; queries from `x`, keys and values from `context` (self-attention when it is None).

    `implementation` is "plain", or "cudnn" for training on NVIDIA GPUs (`ops.flash_attention`).
    """

    def __init__(
        self, width: int, heads: int, *, implementation: AttentionKind = "plain", dtype: Any = None, rngs: nnx.Rngs
    ):
        if width % heads:
            raise InputError(f"attention width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.implementation = implementation
        self.query = linear(width, width, dtype=dtype, rngs=rngs)
        self.key = linear(width, width, dtype=dtype, rngs=rngs)
        self.value = linear(width, width, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        mask: Bool[Array, "..."] | None = None,
    ) -> Float[Array, "b n d"]:
        """`mask` is broadcast to (b, heads, n, m); True means "may attend"."""
        return self.attend(x, *self.keys_and_values(x if context is None else context), mask)

    def keys_and_values(self, context: Float[Array, "b m d"]) -> KeysAndValues:
        return self.key(context), self.value(context)

    def attend(
        self,
        x: Float[Array, "b n d"],
        keys: Float[Array, "b m d"],
        values: Float[Array, "b m d"],
        mask: Bool[Array, "..."] | None = None,
    ) -> Float[Array, "b n d"]:
        """The attention of `x` to tokens whose keys and values are known."""
        attend_by = flash_attend if self.implementation == "cudnn" else attend
        y = attend_by(self.split(self.query(x)), self.split(keys), self.split(values), mask)
        return self.out(y.reshape(x.shape))

    def split(self, y: Float[Array, "b n d"]) -> Float[Array, "b n h c"]:
        """The part of each head, c = d / h."""
        return y.reshape(*y.shape[:2], self.heads, -1)


class Block(nnx.Module):
    """Pre-norm transformer block: `x + attention(norm1(x))`, then `x + mlp(norm2(x))`."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        activation: Activation = gelu,
        norm_eps: float = 1e-6,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.norm1 = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, mlp_width, activation=activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "..."] | None = None) -> Float[Array, "b n d"]:
        return self.with_keys_and_values(x, mask)[0]

    def with_keys_and_values(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "..."] | None = None
    ) -> tuple[Float[Array, "b n d"], KeysAndValues]:
        """The output, and the keys and values of its attention."""
        normed = self.norm1(x)
        keys, values = self.attention.keys_and_values(normed)
        x = x + self.attention.attend(normed, keys, values, mask)
        return x + self.mlp(self.norm2(x)), (keys, values)

    def at(self, x: Float[Array, "b n d"], token: Int[Array, " b"], mask: Bool[Array, "n n"] | None = None) -> Array:
        """The output (b, d) for one token of each sequence; of the others only keys and values are computed."""

        def chosen(y: Array) -> Array:  # batch by batch, so that a batch split over devices stays where it is
            return jnp.take_along_axis(y, token[:, None, None], axis=1)

        normed = self.norm1(x)
        allowed = None if mask is None else mask[token][:, None, None]
        y = (chosen(x) + self.attention(chosen(normed), normed, allowed))[:, 0]
        return y + self.mlp(self.norm2(y))


class Transformer(nnx.Module):
    """`depth` blocks with stacked parameters, scanned, so that compile time does not grow with depth.

    `remat` is what the backward pass computes again instead of keeping it: nothing ("none"), all but the results of
    the matrix products ("dots"), or everything inside a block ("full").
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        activation: Activation = gelu,
        norm_eps: float = 1e-6,
        dtype: Any = None,
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        self.depth, self.remat = depth, remat

        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, mlp_width, activation=activation, norm_eps=norm_eps, dtype=dtype, rngs=rngs)

        self.blocks = stack(rngs)

    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "..."] | None = None
    ) -> tuple[Float[Array, "b n d"], Float[Array, "l b n d"]]:
        """Returns the output of the last block and the outputs of all of them (dropped by the compiler when unused)."""
        graphdef, state = nnx.split(self.blocks)
        return jax.lax.scan(lambda x, block: self._apply(graphdef, block, x, mask), x, state)

    def with_keys_and_values(
        self, x: Float[Array, "b n d"]
    ) -> tuple[Float[Array, "b n d"], tuple[Float[Array, "l b n d"], Float[Array, "l b n d"]]]:
        """The output of the last block, and the keys and the values of every block's attention."""
        graphdef, state = nnx.split(self.blocks)

        def apply(x: Array, block: Any) -> tuple[Array, KeysAndValues]:
            return nnx.merge(graphdef, block).with_keys_and_values(x)

        return jax.lax.scan(self._rematerialised(apply), x, state)

    def before_last(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "..."] | None = None
    ) -> tuple[Float[Array, "b n d"], Float[Array, "l b n d"], Block]:
        """The input of the last block, the outputs of all blocks before it, and the last block itself."""
        graphdef, state = nnx.split(self.blocks)

        def block(i: Array | int) -> Any:
            return jax.tree.map(lambda a: a[i], state)

        # by index, because a scan over a part of the stacked weights would copy them first
        layers = jnp.arange(self.depth - 1)
        x, outputs = jax.lax.scan(lambda x, i: self._apply(graphdef, block(i), x, mask), x, layers)
        return x, outputs, nnx.merge(graphdef, block(-1))

    def _apply(self, graphdef: nnx.GraphDef, block: Any, x: Array, mask: Array | None) -> tuple[Array, Array]:
        def apply(x: Array, block: Any) -> Array:
            return nnx.merge(graphdef, block)(x, mask)

        x = self._rematerialised(apply)(x, block)
        return x, x

    def _rematerialised(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        if self.remat == "none":
            return apply
        return jax.checkpoint(apply, policy=_DOTS if self.remat == "dots" else None)


def sincos_positions(
    height: int, width: int, dim: int, grid: tuple[int, int] | None = None
) -> Float[np.ndarray, "n d"]:
    """MAE's fixed position table, row-major: the first half of `dim` encodes the column, the second half the row.

    Each half is [sin(p w), cos(p w)] with w_i = 10000^(-i / (dim / 4)). Values in [-1, 1], float32. `grid` is the
    (rows, columns) that the coordinates p are in, if not the table's own: the patches' centres are scaled to it.
    """
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, got {dim}")
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
    sizes = zip((height, width), grid or (height, width), strict=True)
    rows, columns = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in sizes)
    rows, columns = np.meshgrid(rows, columns, indexing="ij")

    def encode(p: np.ndarray) -> np.ndarray:
        angles = p.reshape(-1, 1) * omega
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return np.concatenate([encode(columns), encode(rows)], axis=1).astype(np.float32)
