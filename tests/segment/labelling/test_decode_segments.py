"""Labels, segments and background of hand-made encodings."""

import jax
import jax.numpy as jnp
import numpy as np

from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment.labelling import decode, scoring
from zeroseg_jax.segment.labelling.scoring import Texts, View
from zeroseg_jax.segment.methods import Encoding
from zeroseg_jax.segment.options import Labelling

label_pixels = jax.jit(decode.label_pixels, static_argnums=(3, 4))
score = jax.jit(scoring.score, static_argnums=(3, 4))
likeliest = jax.jit(scoring.likeliest, static_argnums=2)
assign_pixels = jax.jit(scoring.assign_pixels)


EMBEDDINGS = jnp.asarray([[1.0, 0.0], [0.6, 0.8]])
"""Of two segments, left and right."""
SHARES = jnp.asarray([[1.0, 0.0], [0.2, 0.8], [1.0, 0.0], [0.2, 0.8]])
"""Of the segments in each patch of a 2x2 grid."""
WORDS = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
"""The last one is padding."""


def label(threshold=None, labels=2, scale=0.0, mix="scores"):
    """Labels and segments of 16 x 16 pixels; with a threshold their probabilities too."""
    numbers = [jnp.float32(value) for value in (scale, threshold or 0, 10)]
    texts = Texts(WORDS, jnp.int32(labels), jnp.int32(2), *numbers)
    matrix = resize_matrix(2, 16)[None, :, None]
    view = View(Encoding(EMBEDDINGS[None, None], SHARES[None, None]), matrix, matrix)
    return label_pixels((view,), texts, None, Labelling(mix), threshold is not None)


def test_labels_and_segments_by_hand():
    # scores of the right patches are 0.2 (1, 0) + 0.8 (0.6, 0.8) = (0.68, 0.64): the first label wins everywhere
    label_map, segments = label()
    assert not np.asarray(label_map).any()
    np.testing.assert_array_equal(segments[0, 0, [0, 15]], [0, 1])
    # a steep softmax gives the right patches 0.2 to the first and 0.8 to the second label
    np.testing.assert_array_equal(label(scale=100.0)[0][0, 5, [0, 15]], [0, 1])
    # embeddings: 0.2 (1, 0) + 0.8 (0.6, 0.8) again points nearer to the first
    assert not np.asarray(label(mix="embeddings")[0]).any()


def test_background_by_prompt_and_by_threshold():
    # the second text becomes the background
    np.testing.assert_array_equal(label(labels=1, scale=100.0)[0][0, 5, [0, 15]], [0, -1])
    # the right segment is sure by softmax(6, 8) = 0.88 only, and its patches by a mixture
    np.testing.assert_array_equal(label(threshold=0.95)[0][0, 5, [0, 15]], [0, -1])
    assert not np.asarray(label(threshold=0.2)[0]).any()


def texts_of(embeddings, labels, total, threshold=0.0, logit_scale=1.0):
    numbers = jnp.int32(labels), jnp.int32(total), jnp.float32(0), jnp.float32(threshold), jnp.float32(logit_scale)
    return Texts(jnp.asarray(embeddings, jnp.float32), *numbers)


def test_the_likeliest_labels_of_each_window():
    image = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]])  # of two windows
    encoding = Encoding(jnp.zeros((1, 2, 3, 2)), jnp.zeros((1, 2, 4, 3)), image)
    # four labels, of which two are the same, a phrase for background and padding
    texts = texts_of([[1, 0], [0.6, 0.8], [0.6, 0.8], [0, 1], [-1, 0], [0, 0]], 4, 5)
    likely = np.asarray(likeliest(encoding, texts, 2))[0, :, :5]
    np.testing.assert_array_equal(likely, [[1, 1, 0, 0, 1], [0, 1, 0, 1, 1]])
    assert np.asarray(likeliest(encoding, texts, 9))[..., :5].all()
    # without an embedding of the image that of the mean patch counts: three of four patches are in segment 0
    embeddings = jnp.asarray([[[[1.0, 0.0], [0.0, 1.0]]]])
    assignment = jnp.asarray([[[[1.0, 0], [1, 0], [1, 0], [0, 1]]]])
    likely = np.asarray(likeliest(Encoding(embeddings, assignment), texts, 1))[0, 0, :4]
    np.testing.assert_array_equal(likely, [1, 0, 0, 0])
    likely = np.asarray(likeliest(Encoding(embeddings[:, :, 1:].repeat(4, 2), None), texts, 1))[0, 0, :4]
    np.testing.assert_array_equal(likely, [0, 0, 0, 1])


def test_left_out_labels_score_least():
    encoding = Encoding(jnp.asarray([[[[1.0, 0.0], [0.0, 1.0]]]]), None, jnp.asarray([[[1.0, 0.0]]]))
    cosines = jnp.asarray([[[[1.0, 0.0, 9.0], [0.0, 1.0, 9.0]]]])
    texts = texts_of([[1, 0], [0, 1], [0, 0]], 2, 2)
    result = score(cosines, encoding, texts, Labelling(top_classes=1), True)
    np.testing.assert_array_equal(result["score"][0, 0], [[1, -1, -9], [0, -1, -9]])
    np.testing.assert_array_equal(result["probability"][0, 0], [[1, 0, 0], [1, 0, 0]])


def test_groupvits_scores_by_hand():
    """Three labels; the image is nearest to the first two of them. Numbers: e^ln2 : e^0 : e^0 = 2 : 1 : 1, ..."""
    two = np.log(2)
    cosines = jnp.asarray([[[[two, 0, 0, 7], [0, 0, two, 7], [0, 2 * two, 0, 7]]]])
    image = jnp.asarray([[[1.0, 0.0]]])
    encoding = Encoding(jnp.zeros((1, 1, 3, 2)), jnp.zeros((1, 1, 4, 3)), image)
    embeddings = [[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 0]]
    over_all = np.array([[2, 1, 1], [1, 1, 2], [1, 4, 1]]) / [[4], [4], [6]]
    over_two = np.array([[2, 1, 0], [1, 1, 0], [1, 4, 0]]) / [[3], [2], [5]]
    product = over_all * over_two  # at most 1/3, 1/8 and 8/15
    for threshold, hidden in ((0.3, [0, 1, 0]), (0.1, [0, 0, 0]), (0.5, [1, 1, 0]), (0.95, [1, 1, 0])):
        texts = texts_of(embeddings, 3, 3, threshold)
        result = score(cosines, encoding, texts, Labelling(top_classes=2, rule="groupvit"), True)["score"][0, 0]
        np.testing.assert_allclose(result[:, 1:4], product, atol=1e-6)
        np.testing.assert_array_equal(result[:, 0], hidden)  # the best segment never is
        np.testing.assert_array_equal(result[:, 4], -9)
    unlimited = score(cosines, encoding, texts, Labelling(rule="groupvit"), False)["score"][0, 0]
    np.testing.assert_allclose(unlimited[:, 1:4], over_all**2, atol=1e-6)
    assert (np.asarray(unlimited)[:, 0] == -9).all()  # without a threshold there is no background


def test_groupvits_pixels_belong_to_one_segment():
    """Two patches of four pixels side by side: shares of 1 and 0.2 in the first segment are even past the middle."""
    assignment = jnp.asarray([[[[1.0, 0.0], [0.2, 0.8]]]])
    view = View(Encoding(jnp.eye(2)[None, None], assignment), np.eye(4)[None, :, None], np.eye(8)[None, :, None])
    owner = np.asarray(assign_pixels(view).assignment)[0, 0].reshape(4, 8, 2)
    # of the first segment pixel 4 has 1 - 0.8 x 0.625 = 0.5, by a hair
    assert (owner[:, :4, 0] == 1).all() and (owner[:, 5:, 1] == 1).all() and (owner.sum(axis=-1) == 1).all()
    # the first segment is sure, the second is background, whatever the steep scores of mixed pixels would be
    texts = texts_of([[1, 0], [0.5, 0.1]], 2, 2, 0.6, 10.0)
    enlarge = [np.pad(np.eye(4, dtype=np.float32), ((0, 12), (0, 0)))[None, :, None], np.eye(8)[None, :, None]]
    label_map, segments, probability = label_pixels(
        (View(view.encoding, *enlarge),), texts, None, Labelling(rule="groupvit"), True
    )
    # the best score of the second segment is its best label's probability squared; nothing hides the first
    expected = np.where(np.asarray(segments) == 0, 1, 1 / (1 + np.exp(-1.0)) ** 2)
    np.testing.assert_allclose(probability[:, :4], expected[:, :4], atol=1e-5)
    np.testing.assert_array_equal(label_map[0, :4, [0, 3, 5, 7]].T, [[0, 0, -1, -1]] * 4)
