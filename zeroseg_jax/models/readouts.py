"""Training-free readouts: how a frozen CLIP gives an embedding for every patch, and not only for the image.

Each function takes the last block of CLIP's image tower and the tokens that enter it, class token first. It returns the
patches' tokens before the tower's final norm. `maskclip` (Zhou et al. 2022) leaves the attention out. `sclip` (Wang et
al. 2024), `clearclip` (Lan et al. 2024), `naclip` (Hajimiri et al. 2025) and `pearl` (2026) change what attends to
what. `sc_clip` (Bai et al. 2024) also repairs outliers and reads earlier blocks.

b images, n patches of a grid, m = n + 1 tokens, d the width of the tower, a attention heads. Blocks are counted from 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.layers import Attention, Block

Grid = tuple[int, int]
SIGMA = 5.0
"""Width in patches of NACLIP's neighbourhood."""
NEIGHBOURS, OUTLIERS, SIMILAR = 30, 0.05, 0.4
"""SC-CLIP: patches that a patch's density is measured by; share of outliers; least cosine of similar patches."""
CLASS_SHARE = 0.3
"""SC-CLIP: share of the class token that every patch is given."""
STEPS, KEY_SHARE = 5, 0.08
"""PEARL: steps of the Newton-Schulz iteration; weight of the attention from keys to keys."""


def maskclip(block: Block, tokens: Float[Array, "b m d"], grid: Grid) -> Float[Array, "b n d"]:
    """Every patch keeps its own value: no attention, no residual, no MLP."""
    attention = block.attention
    return attention.out(attention.value(block.norm1(tokens[:, 1:])))


def sclip(block: Block, tokens: Float[Array, "b m d"], grid: Grid) -> Float[Array, "b n d"]:
    """Queries attend to queries and keys to keys. The two shares are added, so rows sum to 2. The block stays whole."""
    normed = block.norm1(tokens)
    query, key = _heads(block.attention, "query", normed), _heads(block.attention, "key", normed)
    shares = jax.nn.softmax(_logits(query, query)) + jax.nn.softmax(_logits(key, key))
    tokens = tokens + _mix(block.attention, shares, normed)
    return (tokens + block.mlp(block.norm2(tokens)))[:, 1:]


def clearclip(block: Block, tokens: Float[Array, "b m d"], grid: Grid) -> Float[Array, "b n d"]:
    """Queries attend to queries; no residual, no MLP."""
    normed = block.norm1(tokens)
    query = _heads(block.attention, "query", normed)
    return _mix(block.attention, jax.nn.softmax(_logits(query, query)), normed)[:, 1:]


def naclip(block: Block, tokens: Float[Array, "b m d"], grid: Grid) -> Float[Array, "b n d"]:
    """Keys attend to keys, and more to those of neighbouring patches; no residual, no MLP."""
    normed = block.norm1(tokens)
    key = _heads(block.attention, "key", normed)
    places = np.stack(np.meshgrid(*(np.arange(side) for side in grid), indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.square(places[:, None] - places).sum(axis=-1)
    near = np.pad(np.exp(-distance / (2 * SIGMA**2)), ((1, 0), (1, 0))).astype(np.float32)  # 0 for the class token
    return _mix(block.attention, jax.nn.softmax(_logits(key, key) + near), normed)[:, 1:]


def sc_clip(block: Block, tokens: Float[Array, "b m d"], grid: Grid, layers: Float[Array, "l b m d"]) -> Array:
    """SC-CLIP: outliers repaired, similar patches joined, and several blocks read. (b, n, d).

    `layers` are the outputs of all blocks but the last. The recipe names blocks of 12: block 9 for similarity, block 4
    for the last join, blocks 4 to 10 for the sum. In a tower of another depth they are the same shares of it.
    """
    depth = len(layers) + 1
    early, late, last = (min(max(round(depth * share / 12), 1), depth - 1) for share in (4, 10, 9))
    odd = _outliers(tokens[:, 1:])
    similarity = _cosines(_repair(layers[last - 1][:, 1:], odd, grid))
    alike, coarse = _joining(similarity), _joining(_cosines(layers[early - 1][:, 1:]))

    def read(patches: Float[Array, "b n d"], class_token: Float[Array, "b d"]) -> Float[Array, "b n d"]:
        y = _attend_alike(block, patches, similarity) + CLASS_SHARE * class_token[:, None]
        return coarse @ y

    several = layers[early - 1 : late].sum(axis=0)
    repaired = alike @ _repair(tokens[:, 1:], odd, grid)
    return read(repaired, tokens[:, 0]) + read(several[:, 1:], several[:, 0])


def pearl(block: Block, tokens: Float[Array, "b m d"], grid: Grid) -> Float[Array, "b n d"]:
    """Queries attend to keys that are rotated to align with them, and keys a little to keys; no residual, no MLP.

    In each head, queries and keys are centred by their means over the patches, weighted by the length of the query. R
    is the rotation that brings the keys nearest to the queries (orthogonal Procrustes): the polar factor of
    keys^T queries, by `STEPS` Newton-Schulz steps. The logits are (q (k R)^T + KEY_SHARE k k^T) / sqrt(width of a
    head). PEARL also smooths the scores along the edges of the image. That step is left out, because we know the form
    of its equations but not the weights of the edges in them. The guided filter is there instead.
    """
    normed = block.norm1(tokens)
    query, key = (_heads(block.attention, part, normed).astype(jnp.float32) for part in ("query", "key"))
    patches = (np.arange(tokens.shape[1]) > 0).astype(np.float32)[:, None]  # not the class token
    weight = jnp.linalg.norm(query, axis=-1, keepdims=True) * patches
    weight = weight / weight.sum(axis=2, keepdims=True)
    query, key = (x - (weight * x).sum(axis=2, keepdims=True) for x in (query, key))
    rotation = _polar_factor(jnp.einsum("bamc,bamd->bacd", key, query, precision="highest"))
    rotated = jnp.einsum("bamc,bacd->bamd", key, rotation, precision="highest")
    shares = jax.nn.softmax(_logits(query, rotated) + KEY_SHARE * _logits(key, key))
    return _mix(block.attention, shares, normed)[:, 1:]


LAST_BLOCK: dict[str, Callable[[Block, Array, Grid], Array]] = {
    "maskclip": maskclip,
    "sclip": sclip,
    "clearclip": clearclip,
    "naclip": naclip,
    "pearl": pearl,
}
"""The readouts that change the last block only, by name."""
READOUTS = (*LAST_BLOCK, "sc_clip")
"""The readouts of a CLIP, by name."""


def readouts_of_depth(depth: int) -> tuple[str, ...]:
    """The readouts of a CLIP with this many blocks. `sc_clip` needs at least two."""
    return READOUTS if depth > 1 else tuple(LAST_BLOCK)


def default_readout(names: tuple[str, ...]) -> str:
    """`sc_clip` where a model has it, else `pearl`, else the first of `names`.

    Two tiny CLIPs do not decide it: on 200 validation scenes `pearl` is clearly better, on 160 photographs `sc_clip`
    is (docs/results.md). The published table does: SC-CLIP leads on seven of eight benchmarks, holds at ViT-L/14, and
    `pearl` runs here without its smoothing.
    """
    return next((name for name in ("sc_clip", "pearl") if name in names), names[0])


def check_readout(name: str, names: tuple[str, ...]) -> None:
    """Raises InputError for a readout that a model does not have; `names` are those that it has."""
    if name not in names:
        raise InputError(f"there is no readout {name!r} of this model; it has {', '.join(names)}")


def _heads(attention: Attention, part: str, x: Float[Array, "b m d"]) -> Float[Array, "b a m c"]:
    """The queries, keys or values of each head."""
    y = getattr(attention, part)(x)
    return y.reshape(*y.shape[:2], attention.heads, -1).swapaxes(1, 2)


def _logits(a: Float[Array, "b a m c"], b: Float[Array, "b a m c"]) -> Float[Array, "b a m m"]:
    return jnp.einsum("bamc,banc->bamn", a, b, preferred_element_type=jnp.float32) * a.shape[-1] ** -0.5


def _mix(attention: Attention, shares: Float[Array, "b #a m m"], x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
    """The values of `x` mixed by `shares`, through the output projection."""
    value = _heads(attention, "value", x)
    y = jnp.einsum("bamn,banc->bmac", jnp.broadcast_to(shares, (*value.shape[:3], x.shape[1])).astype(x.dtype), value)
    return attention.out(y.reshape(x.shape))


def _polar_factor(x: Float[Array, "b a c c"]) -> Float[Array, "b a c c"]:
    """The orthogonal factor of each matrix, by Newton-Schulz steps X <- (3 X - X X^T X) / 2 from X = x / |x|."""
    x = x / jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)
    for _ in range(STEPS):
        gram = jnp.einsum("bacd,baed->bace", x, x, precision="highest")
        x = 1.5 * x - 0.5 * jnp.einsum("bace,baed->bacd", gram, x, precision="highest")
    return x


def _outliers(x: Float[Array, "b n d"]) -> Bool[Array, "b n"]:
    """Patches whose local outlier factor (Breunig et al. 2000, simplified) is in the upper `OUTLIERS` of the image."""
    x = x.astype(jnp.float32)
    n = x.shape[1]
    count = min(NEIGHBOURS, n - 1)
    if not count:
        return jnp.zeros(x.shape[:2], bool)
    x = x - x.mean(axis=1, keepdims=True)  # smaller numbers, so that the difference of products below is precise
    square = jnp.square(x).sum(axis=-1)
    product = jnp.einsum("bmd,bnd->bmn", x, x, precision="highest")
    distance = jnp.maximum(square[:, :, None] + square[:, None] - 2 * product, 0)
    itself = np.where(np.eye(n, dtype=bool), np.inf, 0).astype(np.float32)
    distance = distance + itself
    nearest, where = jax.lax.top_k(-distance, count)
    density = count / -nearest[..., -1]
    score = jnp.take_along_axis(density[:, None], where, axis=2).mean(axis=-1) / density
    return score > jnp.quantile(score, 1 - OUTLIERS, axis=-1, keepdims=True)


def _repair(x: Float[Array, "b n d"], odd: Bool[Array, "b n"], grid: Grid) -> Float[Array, "b n d"]:
    """Each outlier becomes the mean of its neighbours (up to eight) that are not outliers. Without any, it stays."""
    b, n, d = x.shape
    sound = jnp.where(odd, 0.0, 1.0).reshape(b, *grid, 1)
    weighted = jnp.concatenate([x.reshape(b, *grid, d) * sound, sound], axis=-1)
    padded = jnp.pad(weighted, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = sum(
        padded[:, y : y + grid[0], x_ : x_ + grid[1]] for y in range(3) for x_ in range(3) if (y, x_) != (1, 1)
    )
    assert isinstance(around, jax.Array)
    total = around[..., -1:]
    mean = (around[..., :-1] / jnp.maximum(total, 1)).reshape(b, n, d).astype(x.dtype)
    return jnp.where((odd & (total.reshape(b, n) > 0))[..., None], mean, x)


def _cosines(x: Float[Array, "b n d"]) -> Float[Array, "b n n"]:
    x = x.astype(jnp.float32)
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.einsum("bmd,bnd->bmn", x, x, precision="highest")


def _joining(cosines: Float[Array, "b n n"]) -> Float[Array, "b n n"]:
    """Shares by which similar patches are averaged; rows sum to 1."""
    similar = jnp.where(cosines < SIMILAR, 0.0, cosines)
    return similar / (similar.sum(axis=-1, keepdims=True) + 1e-6)


def _attend_alike(block: Block, x: Float[Array, "b n d"], similarity: Float[Array, "b n n"]) -> Float[Array, "b n d"]:
    """Half of the attention goes by `similarity`, half from keys to keys; no class token, no residual, no MLP."""
    normed = block.norm1(x)
    key = _heads(block.attention, "key", normed)
    above = 3 * (similarity - similarity.mean(axis=(1, 2), keepdims=True))
    by_similarity = jax.nn.softmax(jnp.where(above < 0, -jnp.inf, above))
    shares = (by_similarity[:, None] + jax.nn.softmax(_logits(key, key))) / 2
    return _mix(block.attention, shares, normed)
