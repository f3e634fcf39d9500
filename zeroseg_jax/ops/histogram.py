"""Counts of pairs of indices, exact."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32

CHUNK = 2**15
"""Pairs that go through one matrix product. Their sums in float32 are exact below 2**24."""


def histogram_of_pairs(
    rows: Int[Array, " n"], columns: Int[Array, " n"], shape: tuple[int, int]
) -> Int32[Array, "r c"]:
    """How often each pair (row, column) occurs. A pair with an index outside `shape` is not counted."""
    # Accelerators add to single numbers one after the other, and multiply matrices fast: 512 x 704 pixels and 171
    # labels take 0.4 million cycles of a TPU v5e, by its compiler's count. A CPU is the other way round.
    return jax.lax.platform_dependent(
        rows,
        columns,
        cpu=lambda rows, columns: by_scatter(rows, columns, shape),
        default=lambda rows, columns: by_product(rows, columns, shape),
    )


def by_scatter(rows: Int[Array, " n"], columns: Int[Array, " n"], shape: tuple[int, int]) -> Int32[Array, "r c"]:
    """Adds 1 to a number for each pair."""
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    index = jnp.where(inside, rows.astype(jnp.int32) * shape[1] + columns, shape[0] * shape[1])
    return jnp.zeros(shape[0] * shape[1], jnp.int32).at[index].add(1, mode="drop").reshape(shape)


def by_product(rows: Int[Array, " n"], columns: Int[Array, " n"], shape: tuple[int, int]) -> Int32[Array, "r c"]:
    """Multiplies the one-hot matrices of the rows and of the columns."""

    def count(total: Int32[Array, "r c"], part: tuple[Array, ...]) -> tuple[Int32[Array, "r c"], None]:
        one_hot = (jax.nn.one_hot(x, n, dtype=jnp.bfloat16) for x, n in zip(part, shape, strict=True))
        sums = jnp.einsum("nr,nc->rc", *one_hot, preferred_element_type=jnp.float32)
        return total + sums.astype(jnp.int32), None

    parts = [jnp.pad(x, (0, -len(x) % CHUNK), constant_values=-1).reshape(-1, CHUNK) for x in (rows, columns)]
    return jax.lax.scan(count, jnp.zeros(shape, jnp.int32), tuple(parts))[0]
