"""The student: shapes, what may not change its output, and gradients."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.layers import Transformer
from zeroseg_jax.models.student import Student, StudentConfig

TINY = StudentConfig(
    image_size=32,
    patch_size=8,
    width=16,
    depth=1,
    heads=2,
    mask_ratio=0.5,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=2,
    segment_tokens=(5, 3),
    segment_depths=(1, 1),
    segment_heads=2,
    projection_width=24,
    embed_dim=12,
    assignment="hard",
    gumbel=True,
)


@pytest.fixture(scope="module")
def student(filled) -> Student:
    return filled(lambda: Student(TINY, rngs=nnx.Rngs(0)))


def variant(student: Student, dtype=None, **changes) -> Student:
    """A student of another config with the same weights."""
    config = dataclasses.replace(TINY, **changes)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Student(config, rngs=nnx.Rngs(0), dtype=dtype)))
    return nnx.merge(graphdef, nnx.state(student))


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).uniform(size=(2, 32, 32, 3)), jnp.float32)


@pytest.fixture(scope="module")
def noise():
    return jnp.asarray(np.random.default_rng(1).uniform(size=(2, 16)), jnp.float32)


@nnx.jit(static_argnames="reconstruct")
def run(student, images, noise=None, gumbel_key=None, reconstruct=True):
    return student(images, noise=noise, gumbel_key=gumbel_key, reconstruct=reconstruct)


@pytest.fixture(scope="module")
def masked(student, images, noise):
    return run(student, images, noise)


@pytest.fixture(scope="module")
def whole(student, images):
    return run(student, images)


def test_masked_output(masked, noise):
    assert masked.segments.shape == (2, 3, 12)
    assert masked.image.shape == (2, 12)
    assert masked.assignment.shape == (2, 8, 3)
    assert masked.reconstruction.shape == (2, 16, 192)
    assert [a.shape for a in masked.stage_assignments] == [(2, 8, 5), (2, 5, 3)]
    for row, visible, mask in zip(noise, masked.visible, masked.mask, strict=True):
        assert sorted(visible.tolist()) == sorted(np.argsort(row)[:8].tolist()) == np.flatnonzero(mask == 0).tolist()
    first, second = masked.stage_assignments
    np.testing.assert_allclose(masked.assignment, first @ second, atol=1e-6)
    for shares in (masked.assignment, first, second):
        np.testing.assert_allclose(shares.sum(axis=-1), 1, rtol=1e-5)


def test_unmasked_output(whole):
    assert whole.assignment.shape == (2, 16, 3)
    assert whole.visible.tolist() == [list(range(16))] * 2
    assert (whole.mask == 0).all()
    assert whole.reconstruction is None


def test_segments_do_not_depend_on_the_order_of_the_patches(student, whole, images, noise):
    everything = run(variant(student, mask_ratio=0.0), images, noise, reconstruct=False)  # in the order of the noise
    assert everything.visible.shape == (2, 16) and (everything.mask == 0).all()
    np.testing.assert_allclose(everything.segments, whole.segments, atol=1e-5)
    inverse = jnp.argsort(everything.visible, axis=1)[..., None]
    in_order = jnp.take_along_axis(everything.assignment, inverse, axis=1)
    np.testing.assert_allclose(in_order, whole.assignment, atol=1e-5)


def test_one_stage_without_decoder_or_masking(images, noise):
    config = dataclasses.replace(TINY, mask_ratio=0.0, decoder_depth=0, segment_tokens=(4,), segment_depths=(1,))
    output = nnx.eval_shape(lambda: Student(config, rngs=nnx.Rngs(0))(images, noise=noise))
    assert output.reconstruction is None
    assert output.segments.shape == (2, 4, 12)
    assert output.assignment.shape == (2, 16, 4)


class Identity(nnx.Module):
    def __call__(self, x):
        return x


def test_the_image_feature_is_the_mlp_of_the_mean_segment_after_the_last_layer(student, images):
    graphdef, state = nnx.split(student)
    bare = nnx.merge(graphdef, state)
    bare.projection = Identity()
    with_layer = nnx.jit(lambda m, x: m(x))(bare, images)
    np.testing.assert_allclose(with_layer.image, with_layer.segments.mean(axis=1), atol=1e-5)
    bare.pool, bare.norm = None, Identity()
    before = nnx.jit(lambda m, x: m(x))(bare, images)
    pooled, _ = student.pool(before.segments)  # before the layer, and through it by hand
    np.testing.assert_allclose(with_layer.segments, student.norm(pooled), atol=1e-5)
    projected = student.projection(with_layer.segments.mean(axis=1))
    np.testing.assert_allclose(run(student, images).image, projected, atol=1e-5)


def test_without_a_layer_over_the_segments_there_are_no_weights_for_it(images):
    old = nnx.eval_shape(lambda: Student(dataclasses.replace(TINY, pool_depth=0), rngs=nnx.Rngs(0)))
    assert old.pool is None
    assert not [path for path, _ in nnx.to_flat_state(nnx.state(old)) if path[0] == "pool"]


def test_gumbel_noise_only_with_a_key(student, images, noise, masked):
    again = run(student, images, noise, jax.random.key(0))
    other = run(student, images, noise, jax.random.key(1))
    assert np.abs(again.segments - other.segments).max() > 1e-3
    assert np.abs(again.segments - masked.segments).max() > 1e-3
    # the first stage's map is free of noise; what follows sees noisy segments
    np.testing.assert_allclose(again.stage_assignments[0], masked.stage_assignments[0], atol=1e-6)


def test_other_image_sizes(student):
    output = nnx.eval_shape(lambda: student(jnp.ones((1, 16, 48, 3))))
    assert output.assignment.shape == (1, 2 * 6, 3)
    with pytest.raises(InputError, match="20x32 pixels"):
        student(jnp.ones((1, 20, 32, 3)))


def test_bfloat16_stays_close_and_answers_in_float32(images, noise, student):
    soft = variant(student, assignment="soft")
    half = variant(student, jnp.bfloat16, assignment="soft")
    exact, rounded = run(soft, images, noise), run(half, images, noise)
    floats = [a for a in jax.tree.leaves(rounded) if jnp.issubdtype(a.dtype, jnp.floating)]
    assert all(a.dtype == jnp.float32 for a in floats)
    np.testing.assert_allclose(rounded.assignment.sum(axis=-1), 1, rtol=1e-5)
    assert np.abs(rounded.segments - exact.segments).max() < 0.05 * np.abs(exact.segments).max()


@pytest.mark.end_to_end
def test_every_parameter_gets_a_finite_gradient(student, images, noise):
    graphdef, state = nnx.split(student)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it is compiled for one call
    def gradients(state):
        def loss(state):
            output = nnx.merge(graphdef, state)(images, noise=noise, gumbel_key=jax.random.key(0))
            weights = jnp.arange(1.0, 13)
            pooled = jnp.einsum("bks,bsd->bd", output.assignment**2, output.segments)
            return (pooled * weights).sum() + (output.image * weights).sum() + jnp.square(output.reconstruction).sum()

        return jax.grad(loss)(state)

    for path, gradient in nnx.to_flat_state(gradients(state)):
        gradient = np.asarray(gradient[...])
        assert np.isfinite(gradient).all(), path
        if path[-2:] != ("key", "bias"):  # a bias of all keys alike does not change a softmax over them
            assert np.abs(gradient).max() > 0, path


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image_size": 30}, "not divisible by the patch size"),
        ({"heads": 3}, "heads=3"),
        ({"segment_tokens": (4,)}, "same length"),
        ({"mask_ratio": 0.95}, "leaves none of 16 patches visible"),
        ({"mask_ratio": 1.0}, "below 1"),
        ({"assignment": "firm"}, "must be one of soft, hard"),
        ({"tau": 0.0}, "above 0"),
        ({"pool_depth": -1}, "at least 0"),
        ({"remat": "some"}, "none, dots, full"),
    ],
)
def test_impossible_sizes(changes, match):
    with pytest.raises(InputError, match=match):
        dataclasses.replace(TINY, **changes)


@pytest.mark.end_to_end
def test_what_is_computed_again_changes_no_gradient():
    x, gradients, products = jax.random.normal(jax.random.key(0), (2, 5, 16)), {}, {}
    for remat in ("none", "dots", "full"):
        model = Transformer(3, 16, 2, 32, remat=remat, rngs=nnx.Rngs(0))
        graphdef, state = nnx.split(model)

        def loss(state, graphdef=graphdef):
            return jnp.square(nnx.merge(graphdef, state)(x)[0]).sum()

        with jax.disable_jit():  # operation by operation: compilers join those of each program in another order
            gradients[remat] = jax.grad(loss)(state)
        products[remat] = str(jax.make_jaxpr(jax.grad(loss))(state)).count("dot_general[")
    for remat in ("dots", "full"):
        jax.tree.map(np.testing.assert_array_equal, gradients[remat], gradients["none"])
    assert products["none"] < products["dots"] < products["full"]
