"""Counts of pairs against numpy, in both forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroseg_jax.ops.histogram import CHUNK, by_product, by_scatter, histogram_of_pairs


@pytest.mark.parametrize("function", [by_product, by_scatter, histogram_of_pairs])
@pytest.mark.parametrize(("count", "shape"), [(0, (2, 3)), (1000, (3, 5)), (2 * CHUNK + 7, (4, 2))])
def test_pairs_outside_are_not_counted(function, count, shape):
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(-2, n + 2, count).astype(np.int32) for n in shape)
    expected = np.zeros(shape, np.int32)
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    np.add.at(expected, (rows[inside], columns[inside]), 1)
    actual = jax.jit(function, static_argnums=2)(rows, columns, shape)
    np.testing.assert_array_equal(actual, expected)


def test_more_than_bfloat16_and_float16_hold():
    """One pair occurs more often than 8 bits of precision can tell apart."""
    rows = jnp.zeros(100_003, jnp.int32)
    assert by_product(rows, rows, (1, 1))[0, 0] == 100_003 == histogram_of_pairs(rows, rows, (1, 1))[0, 0]
