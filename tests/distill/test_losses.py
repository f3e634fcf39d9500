"""The losses on cases worked out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroseg_jax.distill import losses, views
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.student import StudentOutput

X, Y, Z = jnp.eye(3)
"""Three directions at right angles: their cosine distance is 1, their l1 distance 2 / sqrt(3)."""
L1 = 2 / 3**0.5
CELLS = views.grid_boxes((2,))
INSIDE = views.patch_weights(CELLS, (4, 4))  # each cell has 4 patches
EVERYTHING = jnp.arange(16)[None]


def quarters(*segment_of_cell: int, segments: int = 4) -> jax.Array:
    """Assignment (1, 16, segments) of a 4 x 4 grid whose 2 x 2 cells each belong to one segment."""
    cells = np.kron(np.arange(4).reshape(2, 2), np.ones((2, 2), int)).reshape(-1)
    return jax.nn.one_hot(np.array(segment_of_cell)[cells], segments)[None]


@partial(jax.jit, static_argnames="pool")  # one compilation instead of one an operation
def ground(segments, assignment, teacher, visible=EVERYTHING, inside=INSIDE, **options):
    return losses.ground_loss(segments, assignment, visible, teacher, inside, "cosine", **options)


def test_unit_is_finite_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(losses.unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda x: losses.unit(x).sum())(x)).all()


def test_distances_of_right_angles_opposites_and_lengths():
    for kind, right_angle in (("cosine", 1.0), ("l1", L1)):
        a = jnp.stack([X, 5 * X, X])
        b = jnp.stack([Y, 2 * X, -X])
        far = 2.0 if kind == "cosine" else 2 / 3**0.5
        np.testing.assert_allclose(losses.distance(a, b, kind), [right_angle, 0, far], atol=2e-6)
    # 3-4-5: |0.6 - 1| + |0.8 - 0| over sqrt(2)
    l1 = losses.distance(jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0]), "l1")
    np.testing.assert_allclose(l1, 1.2 / 2**0.5, rtol=1e-6)
    with pytest.raises(InputError, match="l2"):
        losses.distance(X, Y, "l2")


def test_global_is_the_mean_over_views():
    teacher = jnp.stack([X, Y, -X])[None]
    np.testing.assert_allclose(losses.global_loss(7 * X[None], teacher, "cosine"), (0 + 1 + 2) / 3, atol=1e-6)
    weighted = losses.global_loss(X[None], teacher, "cosine", jnp.array([1.0, 3.0, 0.0]))
    np.testing.assert_allclose(weighted, 3 / 4, atol=1e-6)
    assert losses.global_loss(X[None], teacher, "cosine", jnp.zeros(3)) == 0


ALL = np.array([True, True])


def test_match_sums_over_segments_the_distance_to_the_nearest_view():
    teacher = jnp.stack([Y, X])[None]
    segments = jnp.stack([X, 0.1 * X + 0.5 * Y, Z])[None]
    off = 1 - 0.5 / np.hypot(0.1, 0.5)
    np.testing.assert_allclose(losses.match_loss(segments, teacher, ALL, "cosine"), 0 + off + 1, atol=1e-5)
    # only the nearest view pulls: moving the other one changes nothing
    moved = losses.match_loss(segments[:, :1], jnp.stack([Z, X])[None], ALL, "cosine")
    np.testing.assert_allclose(moved, losses.match_loss(segments[:, :1], teacher, ALL, "cosine"))
    # the mean over images: a second image whose segments are all at a right angle to its views
    two = losses.match_loss(jnp.stack([segments[0], jnp.stack([Z, Z, Z])]), jnp.stack([teacher[0]] * 2), ALL, "cosine")
    np.testing.assert_allclose(two, (off + 1 + 3) / 2, atol=1e-5)


@pytest.mark.parametrize(("kind", "right_angle"), [("cosine", 1.0), ("l1", L1)])
def test_match_leaves_the_whole_image_out(kind, right_angle):
    whole_then_cells = np.array([False, True, True])
    teacher = jnp.stack([Z, X, Y])[None]
    segments = jnp.stack([Z, X])[None]  # the first is the whole image's embedding, and gains nothing from it
    match = jax.jit(lambda t: losses.match_loss(segments, t, whole_then_cells, kind))
    np.testing.assert_allclose(match(teacher), right_angle, atol=1e-5)
    pull = jax.jit(jax.grad(match))(teacher)
    assert (pull[:, 0] == 0).all() and jnp.isfinite(pull).all()


@pytest.mark.parametrize("kind", ["l1", "cosine"])
def test_match_of_views_that_are_alike_or_missing(kind):
    match = jax.jit(jax.value_and_grad(lambda s, t, local: losses.match_loss(s, t, local, kind), (0, 1)))
    segments = jnp.stack([X, Y])[None]
    alike = jnp.stack([X, X, X])[None]
    value, gradients = match(segments, alike, np.array([False, True, True]))
    np.testing.assert_allclose(value, 0 + (1 if kind == "cosine" else L1), atol=1e-5)
    assert all(jnp.isfinite(g).all() for g in gradients)
    value, gradients = match(segments, alike, np.zeros(3, bool))  # the whole image is the only view
    assert value == 0 and all((g == 0).all() for g in gradients)


def test_a_broken_embedding_shows_in_match():
    teacher = jnp.stack([X, jnp.full(3, jnp.nan)])[None]
    assert jnp.isnan(losses.match_loss(jnp.stack([X])[None], teacher, ALL, "l1"))


def test_ground_of_segments_that_cover_exactly_one_cell():
    teacher = jnp.stack([X, Y, Z, -X])[None]
    segments = jnp.stack([X, Y, Z, -X])[None] * 3
    np.testing.assert_allclose(ground(segments, quarters(0, 1, 2, 3), teacher), 0, atol=1e-6)
    # two of them swap their cells: both are at a right angle to what the teacher sees there
    np.testing.assert_allclose(ground(segments, quarters(1, 0, 2, 3), teacher), (1 + 1) / 4, atol=1e-6)
    # nearest matching does not notice
    np.testing.assert_allclose(losses.match_loss(segments, teacher, np.ones(4, bool), "cosine") / 4, 0, atol=1e-6)


def test_ground_pools_by_share_of_the_view():
    # the whole image: three quarters are of the first segment, one quarter of the second
    assignment = quarters(0, 0, 0, 1, segments=2)
    whole = views.patch_weights(views.grid_boxes((1,)), (4, 4))
    segments = jnp.stack([X, 6 * Y])[None]
    unit = ground(segments, assignment, X[None, None], inside=whole, pool="unit")
    np.testing.assert_allclose(unit, 1 - 0.75 / np.hypot(0.75, 0.25), atol=1e-5)
    raw = ground(segments, assignment, X[None, None], inside=whole, pool="raw")
    np.testing.assert_allclose(raw, 1 - 0.75 / np.hypot(0.75, 1.5), atol=1e-5)
    with pytest.raises(InputError, match="pooling"):
        ground(segments, assignment, X[None, None], inside=whole, pool="max")


def test_ground_counts_only_visible_patches():
    teacher = jnp.stack([X, Y, Z, -X])[None]
    segments = jnp.stack([X, Z, Z, Z])[None]
    visible = jnp.array([[5, 0, 3]])  # two patches of the first cell, one of the second, none of the others
    assignment = quarters(0, 1, 2, 3)[:, visible[0]]
    np.testing.assert_allclose(ground(segments, assignment, teacher, visible), (0 + 1) / 2, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda s, a: ground(s, a, teacher, visible), (0, 1)))(segments, assignment)
    assert all(jnp.isfinite(g).all() for g in gradient)
    assert (gradient[0][:, 2:] == 0).all()  # unseen views pull nothing
    unseen = ground(segments, assignment[:, :1], teacher[:, 2:], visible[:, :1], INSIDE[2:])
    assert unseen == 0


def test_every_image_counts_alike_in_ground():
    rng = np.random.default_rng(0)
    teacher, segments = (losses.unit(jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)) for _ in range(2))
    visible = jnp.array([[0, 1, 4], [0, 3, 13]])  # in one cell, and in three
    assignment = jnp.asarray(rng.dirichlet(np.ones(4), size=(2, 3)), jnp.float32)
    both = ground(segments, assignment, teacher, visible)
    single = [ground(segments[i, None], assignment[i, None], teacher[i, None], visible[i, None]) for i in range(2)]
    np.testing.assert_allclose(both, sum(single) / 2, rtol=1e-6)
    assert abs(single[0] - single[1]) > 0.1


def test_ground_weights_of_views():
    teacher = jnp.stack([X, Y, Z, -X])[None]
    segments = jnp.stack([X, X, Z, -X])[None]
    for weights, expected in (((1, 1, 1, 1), 1 / 4), ((0, 3, 1, 0), 3 / 4), ((1, 0, 1, 1), 0)):
        loss = ground(segments, quarters(0, 1, 2, 3), teacher, view_weights=jnp.array(weights, jnp.float32))
        np.testing.assert_allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["l1", "cosine"])
def test_empty_segment_keeps_values_and_gradients_finite(kind):
    teacher = jnp.stack([X, Y, Z, -X])[None]
    segments = jnp.stack([X, Y, Z, jnp.zeros(3)])[None]  # the last one has no patch, and its embedding is zero
    assignment = quarters(0, 1, 2, 2)

    def loss(segments, assignment):
        terms = (
            losses.match_loss(segments, teacher, np.ones(4, bool), kind),
            losses.global_loss(segments[:, 3], teacher, kind),
            losses.ground_loss(segments, assignment, EVERYTHING, teacher, INSIDE, kind),
        )
        return sum(terms)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(segments, assignment)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in gradients)


def test_total_is_the_weighted_sum_of_the_terms_asked_for():
    rng = np.random.default_rng(0)

    def random(*shape):
        return jnp.asarray(rng.uniform(size=shape), jnp.float32)

    output = StudentOutput(
        segments=random(2, 3, 5),
        image=random(2, 5),
        assignment=jax.nn.softmax(random(2, 8, 3)),
        visible=jnp.asarray(rng.permuted(np.tile(np.arange(16), (2, 1)), axis=1)[:, :8]),
        mask=jnp.ones((2, 16)),
        reconstruction=random(2, 16, 48),
        stage_assignments=(),
    )
    boxes = views.grid_boxes((1, 2))
    teacher, images = losses.unit(random(2, 5, 5)), random(2, 16, 16, 3)
    config = {"global": 1.0, "match": 0.5, "mae": 2.0, "ground": 3.0, "distance": "l1"}
    loss, terms = jax.jit(lambda output: losses.total_loss(output, teacher, images, config, boxes))(output)
    assert set(terms) == {"global", "match", "mae", "ground", "loss"}
    expected = terms["global"] + 0.5 * terms["match"] + 2 * terms["mae"] + 3 * terms["ground"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(terms["mae"], losses.mae_loss(output.reconstruction, images, output.mask), rtol=1e-5)
    inside = views.patch_weights(boxes, (4, 4))
    by_hand = losses.ground_loss(output.segments, output.assignment, output.visible, teacher, inside, "l1")
    np.testing.assert_allclose(terms["ground"], by_hand, rtol=1e-5)
    cells = losses.match_loss(output.segments, teacher[:, 1:], np.ones(4, bool), "l1")
    np.testing.assert_allclose(terms["match"], cells, rtol=1e-5)

    off = config | {"match": 0.0, "ground": 0.0}
    _, terms = jax.eval_shape(lambda output: losses.total_loss(output, teacher, images, off, boxes), output)
    assert set(terms) == {"global", "mae", "loss"}
    assert all(term.dtype == jnp.float32 and term.shape == () for term in terms.values())
