"""How items are cut into batches."""

import numpy as np
import pytest

from zeroseg_jax.ops.batching import padded, parts

SIZES = (1, 4, 16, 64)


@pytest.mark.parametrize(
    "count, expected",
    [(0, []), (1, [1]), (3, [4]), (5, [4, 1]), (12, [16]), (20, [16, 4]), (130, [64, 64, 1, 1]), (63, [64])],
)
def test_batches_are_nearly_full(count, expected):
    assert [size for _, size in parts(count, SIZES)] == expected


def test_every_item_is_in_one_batch_and_at_most_a_quarter_is_padding():
    for count in range(1, 300):
        result = list(parts(count, SIZES))
        assert np.concatenate([np.arange(count)[batch] for batch, _ in result]).tolist() == list(range(count))
        assert sum(size for _, size in result) <= count / 0.75


def test_padded_repeats_the_first():
    assert padded([np.full(2, i) for i in (5, 6, 7)], 4).tolist() == [[5, 5], [6, 6], [7, 7], [5, 5]]
