"""The training-free readouts, each against a plain numpy version of its recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.models.readouts import READOUTS, default_readout, readouts_of_depth
from zeroseg_jax.models.siglip import Siglip, SiglipConfig

TEXT = TextConfig(vocabulary=20, context=8, width=8, depth=1, heads=2, mlp_width=16)


def make(filled, depth=12, width=24, heads=3, patch=4) -> ClipEncoder:
    vision = VisionConfig(image_size=7 * patch, patch_size=patch, width=width, depth=depth, heads=heads, mlp_width=32)
    return ClipEncoder(filled(lambda: CLIP(CLIPConfig(vision, TEXT, embed_dim=10), rngs=nnx.Rngs(0))))


@pytest.fixture(scope="module")
def clip(filled):
    return make(filled)


class Numpy:
    """The last block and what follows it, in float64, with the model's own weights and block outputs."""

    def __init__(self, clip: ClipEncoder, pixels: np.ndarray):
        tower = clip.model.vision_tower
        out = nnx.jit(lambda tower, x: tower(x))(tower, jnp.asarray(pixels))
        self.layers = np.asarray(out.layers, np.float64)
        self.heads, self.patch, self.eps = tower.config.heads, tower.config.patch_size, tower.config.norm_eps
        blocks = nnx.to_pure_dict(nnx.state(tower.transformer.blocks))
        self.block = jax.tree.map(lambda a: np.asarray(a[-1], np.float64), blocks)
        self.post = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(nnx.state(tower.post_norm)))
        self.projection = np.asarray(clip.model.visual_projection.kernel[...], np.float64)
        self.grid = pixels.shape[1] // self.patch, pixels.shape[2] // self.patch

    def norm(self, x, weights):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + self.eps)
        return x * weights["scale"] + weights["bias"]

    def linear(self, x, weights):
        return x @ weights["kernel"] + weights["bias"]

    def heads_of(self, part, x):
        """One array (tokens, width of a head) for each head, of one image."""
        return np.split(self.linear(x, self.block["attention"][part]), self.heads, axis=-1)

    def attend(self, x, shares_of_head):
        value = self.heads_of("value", x)
        mixed = [shares_of_head(i) @ value[i] for i in range(self.heads)]
        return self.linear(np.concatenate(mixed, -1), self.block["attention"]["out"])

    def mlp(self, x):
        hidden = self.linear(x, self.block["mlp"]["fc1"])
        return self.linear(hidden / (1 + np.exp(-1.702 * hidden)), self.block["mlp"]["fc2"])

    def finish(self, patches):
        return (self.norm(patches, self.post) @ self.projection).reshape(*self.grid, -1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def self_similarity(parts, i):
    return parts[i] @ parts[i].T / np.sqrt(parts[i].shape[-1])


def by_hand(n: Numpy, readout: str, image: int) -> np.ndarray:
    tokens = n.layers[-2, image]
    x = n.norm(tokens, n.block["norm1"])
    query, key = n.heads_of("query", x), n.heads_of("key", x)
    if readout == "maskclip":
        return n.finish(n.attend(x, lambda i: np.eye(len(x)))[1:])
    if readout == "sclip":
        y = tokens + n.attend(x, lambda i: softmax(self_similarity(query, i)) + softmax(self_similarity(key, i)))
        return n.finish((y + n.mlp(n.norm(y, n.block["norm2"])))[1:])
    if readout == "clearclip":
        return n.finish(n.attend(x, lambda i: softmax(self_similarity(query, i)))[1:])
    if readout == "naclip":
        near = np.zeros((len(x), len(x)))
        for i in range(len(x) - 1):
            for j in range(len(x) - 1):
                (a, b), (c, d) = divmod(i, n.grid[1]), divmod(j, n.grid[1])
                near[i + 1, j + 1] = np.exp(-((a - c) ** 2 + (b - d) ** 2) / 50)
        return n.finish(n.attend(x, lambda i: softmax(self_similarity(key, i) + near))[1:])
    if readout == "pearl":
        return n.finish(n.attend(x, lambda i: pearl_shares(query[i], key[i]))[1:])
    return n.finish(sc_clip(n, image))


def pearl_shares(query, key):
    """The attention of one head."""
    weight = np.linalg.norm(query, axis=1)
    weight[0] = 0
    query = query - np.average(query, axis=0, weights=weight)
    key = key - np.average(key, axis=0, weights=weight)
    rotation = key.T @ query
    rotation /= np.sqrt((rotation**2).sum())
    for _ in range(5):
        rotation = 1.5 * rotation - 0.5 * rotation @ rotation.T @ rotation
    return softmax((query @ (key @ rotation).T + 0.08 * key @ key.T) / np.sqrt(key.shape[1]))


def sc_clip(n: Numpy, image: int) -> np.ndarray:
    """Blocks 11, 9, 4 and 4 to 10 of twelve."""
    block = {number: n.layers[number - 1, image] for number in range(1, 13)}
    cells = [divmod(i, n.grid[1]) for i in range(n.grid[0] * n.grid[1])]
    patches = block[11][1:]
    count = min(30, len(patches) - 1)
    distance = ((patches[:, None] - patches) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1)[:, :count]
    density = np.array([count / distance[i, order[i, -1]] for i in range(len(patches))])
    score = np.array([density[order[i]].mean() / density[i] for i in range(len(patches))])
    odd = score > np.quantile(score, 0.95)
    assert odd.any()

    def repair(x):
        y = x.copy()
        for i in np.flatnonzero(odd):
            around = [
                x[j]
                for j in range(len(x))
                if j != i and not odd[j] and max(abs(cells[i][0] - cells[j][0]), abs(cells[i][1] - cells[j][1])) <= 1
            ]
            if around:
                y[i] = np.mean(around, axis=0)
        return y

    def cosines(x):
        unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
        return unit @ unit.T

    def joining(s):
        s = np.where(s < 0.4, 0, s)
        return s / (s.sum(-1, keepdims=True) + 1e-6)

    similarity = cosines(repair(block[9][1:]))
    above = 3 * (similarity - similarity.mean())
    half = softmax(np.where(above < 0, -np.inf, above))

    def attention(x):
        x = n.norm(x, n.block["norm1"])
        key = n.heads_of("key", x)
        return n.attend(x, lambda i: (half + softmax(self_similarity(key, i))) / 2)

    coarse = joining(cosines(block[4][1:]))
    x = joining(similarity) @ repair(patches)
    x = coarse @ (attention(x) + 0.3 * block[11][0])
    several = sum(block[number] for number in range(4, 11))
    return x + coarse @ (attention(several[1:]) + 0.3 * several[0])


@pytest.mark.end_to_end
@pytest.mark.parametrize("size", [(28, 28), (20, 39)], ids=["7x7", "5x9 and a rest"])
@pytest.mark.parametrize("readout", READOUTS)
def test_readouts_follow_their_recipes(clip, readout, size):
    pixels = np.random.default_rng(0).normal(0, 1, (2, *size, 3)).astype(np.float32)
    actual = np.asarray(clip.dense(pixels, readout))
    n = Numpy(clip, pixels)
    assert actual.shape == (2, *n.grid, 10) and actual.dtype == np.float32
    expected = np.stack([by_hand(n, readout, image) for image in range(2)])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_maskclip_is_the_default(clip):
    pixels = np.random.default_rng(1).normal(0, 1, (1, 28, 28, 3)).astype(np.float32)
    np.testing.assert_array_equal(clip.dense(pixels), clip.dense(pixels, "maskclip"))


def test_the_default_is_the_best_published_readout_that_a_model_has():
    assert default_readout(readouts_of_depth(12)) == default_readout(readouts_of_depth(2)) == "sc_clip"
    assert default_readout(readouts_of_depth(1)) == "pearl"  # sc_clip reads earlier blocks too
    assert default_readout(("maskclip",)) == "maskclip"  # a SigLIP


@pytest.mark.parametrize("depth", [2, 3])
def test_shallow_towers_read_the_same_shares_of_their_depth(filled, depth):
    pixels = np.random.default_rng(1).normal(0, 1, (1, 8, 12, 3)).astype(np.float32)
    assert np.isfinite(make(filled, depth=depth).dense(pixels, "sc_clip")).all()


def test_readouts_that_a_model_does_not_have(filled, clip):
    pixels = np.zeros((1, 28, 28, 3), np.float32)
    with pytest.raises(InputError, match="no readout 'dino' of this model; it has maskclip, sclip, clearclip, naclip"):
        clip.dense(pixels, "dino")
    with pytest.raises(
        InputError, match=r"no readout 'sc_clip' of this model; it has maskclip, sclip, clearclip, naclip"
    ):
        make(filled, depth=1).dense(pixels, "sc_clip")
    vision = VisionConfig(image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_width=16)
    siglip = ClipEncoder(filled(lambda: Siglip(SiglipConfig(vision, TEXT), rngs=nnx.Rngs(0))))
    with pytest.raises(InputError, match="no readout 'naclip' of this model; it has maskclip"):
        siglip.dense(np.zeros((1, 8, 8, 3), np.float32), "naclip")
