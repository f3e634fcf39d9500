"""A GroupViT behind the same interface as a student: `zeroseg_jax.load`, words, and images of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zeroseg_jax
from zeroseg_jax import InputError
from zeroseg_jax.models.clip import TextConfig
from zeroseg_jax.models.groupvit import GroupViT, GroupViTConfig, GroupViTVisionConfig
from zeroseg_jax.models.groupvit_encoder import GroupViTEncoder
from zeroseg_jax.models.tokenizer import build_word_tokenizer
from zeroseg_jax.segment.methods import GroupViTMethod

LABELS = ["cat", "grass", "sky", "a red bus"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GroupViT of random weights with a real tokenizer, for images of 16 pixels."""
    folder = tmp_path_factory.mktemp("groupvit")
    tokenizer = build_word_tokenizer(["a photo of a cat on the grass"], vocabulary=530, context=40)
    end = tokenizer.eos_token_id
    text = TextConfig(len(tokenizer), 40, 8, 1, 2, 16, start_id=end - 1, end_id=end, pad_id=end)
    vision = GroupViTVisionConfig(16, 4, 16, 2, 32, depths=(1, 1), group_tokens=(6, 3), segments=(6, 3))
    config = GroupViTConfig(vision, text, embed_dim=8, projection_width=12)
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: GroupViT(config, rngs=nnx.Rngs(0))))

    def draw(path, leaf):
        """Weights that keep the segments apart."""
        constant = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}.get(path[-2].key)
        return jnp.asarray(
            rng.normal(size=leaf.shape) if constant is None else np.full(leaf.shape, constant), leaf.dtype
        )

    state = jax.tree_util.tree_map_with_path(draw, state)
    GroupViTEncoder(nnx.merge(graphdef, state), tokenizer).save(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return zeroseg_jax.load(folder)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.end_to_end
def test_an_image_of_the_models_own_size(model, image):
    assert isinstance(model.method, GroupViTMethod)
    out = model.segment(image, LABELS)
    assert out.label_map.shape == out.segments.shape == (16, 16) and out.scores.shape == (3, 4)
    assert len(np.unique(out.label_map)) > 1  # or the comparisons would say little
    function = model.segment_fn(16, LABELS, guide=0.0)  # the filter takes the edges from an image resized by Pillow
    np.testing.assert_array_equal(function(image[None])[0], model.segment(image, LABELS, guide=0.0).label_map)
    encoded = model.encode(image)
    np.testing.assert_array_equal(encoded.segment(LABELS).label_map, out.label_map)
    # the segments' cosines with the labels, through the soft map
    pixels = model.clip.normalise(image[None] / np.float32(255))
    graphdef, state = nnx.split(model.clip.model)
    result = jax.jit(lambda state, x: nnx.merge(graphdef, state).segments(x))(state, pixels)
    texts = model.embed_labels(LABELS)
    segments = result.segments[0] / np.linalg.norm(result.segments[0], axis=-1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(out.scores, segments @ texts.T, atol=1e-5)
    np.testing.assert_allclose(encoded.assignment, result.assignment, atol=1e-5)


@pytest.mark.end_to_end
def test_a_batch_of_other_sizes_and_a_background(model, image):
    tall = np.random.default_rng(1).integers(0, 256, (37, 30, 3), dtype=np.uint8)
    square, other = model.segment_batch([image, tall], LABELS)
    assert other.label_map.shape == (37, 30)
    np.testing.assert_array_equal(square.label_map, model.segment(image, LABELS).label_map)
    assert model.segment(image, LABELS, background=0.999).label_map.min() == -1


def test_saved_models_predict_the_same(model, image, tmp_path):
    model.save(tmp_path)
    again = zeroseg_jax.load(tmp_path)
    np.testing.assert_array_equal(again.segment(image, LABELS).scores, model.segment(image, LABELS).scores)


def test_a_folder_without_a_tokenizer_reads_no_words(folder, image, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InputError, match="tokenizer"):
        zeroseg_jax.load(tmp_path).segment(image, LABELS)
