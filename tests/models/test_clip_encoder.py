"""CLIP with tokenizer and preprocessing: parity with transformers' CLIPTokenizer and CLIPImageProcessor, and saving."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import ClipEncoder, load_clip
from zeroseg_jax.models.dual_encoder import BATCHES
from zeroseg_jax.models.preprocessing import Preprocessing
from zeroseg_jax.models.tokenizer import build_word_tokenizer

CAPTIONS = ["a photo of a red star on grass", "a ring on sand", "a photo of the grass", "a star and a ring"]
TEXTS = ["a red star", "A RED  Star!", "", "zebra, naïve café 42 🦓", "it's the star's ring", "a star and " * 60]


@pytest.fixture(scope="module")
def encoder(filled) -> ClipEncoder:
    tokenizer = build_word_tokenizer(CAPTIONS * 3, vocabulary=600, context=77)
    end = tokenizer.eos_token_id
    text = TextConfig(len(tokenizer), 77, 12, 1, 2, 16, start_id=end - 1, end_id=end, pad_id=end)
    config = CLIPConfig(VisionConfig(24, 8, 16, 2, 2, 16, activation="gelu"), text, 8, logit_scale=3.0)
    return ClipEncoder(filled(lambda: CLIP(config, rngs=nnx.Rngs(0))), tokenizer)


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    encoder.save(folder)
    return folder


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(24, 24), (37, 61), (90, 41), (10, 31), (24, 25), (300, 25)]
    return [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]


def test_transformers_reads_what_save_writes(encoder, folder):
    theirs = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor(CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder))
    images = pictures()
    inputs = processor(text=TEXTS, images=images, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = theirs(**inputs)
    assert np.abs(encoder.encode_image(images) - out.image_embeds.numpy()).max() < 1e-4
    assert np.abs(encoder.encode_text(TEXTS) - out.text_embeds.numpy()).max() < 1e-4
    assert theirs.logit_scale.item() == float(encoder.model.logit_scale[...])


def test_round_trip_is_exact_in_float32_and_close_in_float16(encoder, folder, tmp_path):
    again = load_clip(folder)
    pixels = encoder.preprocess(pictures())
    assert again.model.config == encoder.model.config
    assert again.preprocessing == encoder.preprocessing
    assert np.array_equal(again.vision(pixels), encoder.vision(pixels))
    assert np.array_equal(again.encode_text(TEXTS), encoder.encode_text(TEXTS))

    encoder.save(tmp_path / "half", dtype="float16")
    half = load_clip(tmp_path / "half")
    assert (tmp_path / "half/model.safetensors").stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half.model))} == {np.dtype("float32")}
    exact = encoder.vision(pixels)
    assert 0 < np.abs(half.vision(pixels) - exact).max() < 0.02 * np.abs(exact).max()
    CLIPModel.from_pretrained(tmp_path / "half")


def test_a_saved_processor_and_old_tokenizer_files_are_read(encoder, folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    processing = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 24, "width": 24})
    CLIPProcessor(processing, encoder.tokenizer).save_pretrained(tmp_path)  # writes processor_config.json
    assert load_clip(tmp_path).preprocessing.resize == 30
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    encoder.tokenizer.backend_tokenizer.model.save(str(tmp_path))  # vocab.json and merges.txt
    assert np.array_equal(load_clip(tmp_path).tokenize(TEXTS), encoder.tokenize(TEXTS))


def test_tokens_equal_clip_tokenizer(encoder, folder):
    theirs = CLIPTokenizer.from_pretrained(folder)
    expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="np")["input_ids"]
    ours = encoder.tokenize(TEXTS)
    assert ours.dtype == np.int32 and ours.shape == (len(TEXTS), 77)
    assert np.array_equal(ours, expected)
    end = theirs.eos_token_id
    assert (ours[-1] != end).sum() == 76 and ours[-1, -1] == end  # cut, and still ended
    assert (ours[2] == end).sum() == 76  # the empty text: start, end and padding


def test_a_text_that_does_not_fit_is_cut_or_refused(encoder):
    long = "star " * 80
    assert encoder.token_counts(["a red star", long]) == [5, 82]
    assert encoder.token_counts([]) == []
    assert encoder.tokenize(["star " * 75], truncate=False).shape == (1, 77)
    with pytest.raises(InputError, match="82 tokens, the model reads 77"):
        encoder.encode_text(["a red star", long], truncate=False)
    with pytest.raises(InputError, match="put it in a list"):
        encoder.encode_text("a red star")


def test_embeddings_do_not_depend_on_the_batch_and_compile_for_few_sizes(encoder):
    images = [np.full((24, 24, 3), i, np.uint8) for i in range(BATCHES[-1] + 3)]
    many = encoder.encode_image(images)
    assert many.shape == (len(images), 8) and many.dtype == np.float32
    assert np.allclose(np.linalg.norm(many, axis=1), 1, atol=1e-6)
    before = encoder._vision._cache_size()
    for count in (3, 2, 4, 67):
        assert np.abs(encoder.encode_image(np.stack(images[:count])) - many[:count]).max() < 1e-5
    assert encoder._vision._cache_size() == before
    assert encoder.encode_image([]).shape == encoder.encode_text([]).shape == (0, 8)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 36}},
        {"size": {"height": 20, "width": 28}, "do_center_crop": False},
        {"size": {"shortest_edge": 15}, "crop_size": {"height": 24, "width": 19}},  # crops beyond the image: black
        {"do_resize": False, "crop_size": 24},
        {"resample": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "rescale_factor": 1 / 127.5},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
    ids=lambda settings: "-".join(settings) or "clip",
)
def test_preprocessing_equals_clip_image_processor(settings):
    theirs = CLIPImageProcessorPil(**settings)
    for ours in (Preprocessing.from_hf(settings), Preprocessing.from_hf(theirs.to_dict())):
        again = Preprocessing.from_hf(ours.to_hf())
        assert again == ours
        for image in (*pictures(), Image.fromarray(pictures()[1])):
            expected = theirs(image, return_tensors="np")["pixel_values"]
            assert np.array_equal(ours([image]), expected.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_images_of_every_mode(mode, tmp_path):
    image = Image.fromarray(pictures()[1]).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(pictures()[1][..., 0]))
    path = tmp_path / "image.tif"
    image.save(path)
    expected = CLIPImageProcessorPil()(Image.open(path), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    assert np.array_equal(Preprocessing()([path]), expected)


def test_photographs_are_set_upright(tmp_path):
    image = Image.fromarray(pictures()[1])
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn right by 90 degrees to view"
    image.save(tmp_path / "turned.png", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(Preprocessing()([tmp_path / "turned.png"]), Preprocessing()([upright]))


def test_texts_are_padded_to_their_own_length_only(encoder):
    texts = [" ".join(["star"] * n) for n in (1, 11, 3, 5, 40, 9)]
    tokens = encoder.tokenize(texts)
    whole = np.asarray(encoder.model.text(jnp.asarray(tokens)))
    alone = np.concatenate([encoder.encode_text([text]) for text in texts])
    together = encoder.encode_text(texts)
    whole = whole / np.linalg.norm(whole, axis=-1, keepdims=True)
    assert np.abs(together - whole).max() < 1e-5 and np.abs(alone - whole).max() < 1e-5


def test_another_input_size(encoder):
    images = pictures()
    assert encoder.preprocess(images, size=40).shape == (len(images), 40, 40, 3)
    assert encoder.encode_image(images[:1], size=40).shape == (1, 8)
    assert encoder.dense(encoder.preprocess(images, size=40)).shape == (len(images), 5, 5, 8)


def test_normalise_is_the_last_step_of_preprocess(encoder):
    image = pictures()[0]
    assert np.abs(encoder.normalise(image[None] / np.float32(255)) - encoder.preprocess([image])).max() < 1e-5


def test_bad_images_are_named(encoder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    for images, said in (
        ([tmp_path / "none.png"], "the image .*none.png cannot be read .No such file"),
        ([str(tmp_path / "broken.png")], "broken.png cannot be read"),
        (tmp_path / "none.png", "put it in a list"),
        (Image.new("RGB", (8, 8)), "put it in a list"),
        (np.full((2, 24, 24, 3), 255, np.float32), r"float values from 255 to 255, expected \[0, 1\]"),
        (np.zeros((24, 24, 3), np.uint8), "put it in a list"),
        ([np.zeros((24, 24, 2), np.uint8)], r"the shape \(24, 24, 2\), expected \(height, width, 3\)"),
        ([None], "NoneType"),
        (None, "NoneType"),
    ):
        with pytest.raises(InputError, match=said):
            encoder.encode_image(images)
    with pytest.raises(InputError, match=r"uint8 .* expected normalised float"):
        encoder.vision(np.zeros((1, 24, 24, 3), np.uint8))
    with pytest.raises(InputError, match="expected normalised float"):
        encoder.dense(np.zeros((24, 24, 3), np.float32))
    with pytest.raises(InputError, match="several sizes"):
        Preprocessing(resize=24, crop=None)(pictures())


def test_without_a_tokenizer_images_still_work(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    encoder = load_clip(tmp_path)
    assert encoder.preprocessing == Preprocessing.square(24)
    assert encoder.encode_image(pictures()[:1]).shape == (1, 8)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        encoder.encode_text(["a star"])


def test_tokenizer_files_that_do_not_fit(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer"):
        load_clip(tmp_path)
    build_word_tokenizer(["some other words", "other words"] * 9, vocabulary=800).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    small = config["text_config"]["vocab_size"] = 100
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"vocab_size {small}|of another shape"):
        load_clip(tmp_path)


def test_word_tokenizer_learns_words_and_spells_others():
    tokenizer = build_word_tokenizer(CAPTIONS * 3, vocabulary=600, context=16)
    assert tokenizer.tokenize("A red STAR") == ["a</w>", "red</w>", "star</w>"]
    assert tokenizer.tokenize("zebra") == ["z", "e", "b", "r", "a</w>"]
    assert "".join(tokenizer.tokenize("é🦓")).endswith("</w>")
    assert tokenizer.eos_token_id == len(tokenizer) - 1 and tokenizer.bos_token_id == len(tokenizer) - 2
    assert tokenizer.decode(tokenizer("a star on grass")["input_ids"], skip_special_tokens=True) == "a star on grass"
    assert len(build_word_tokenizer(CAPTIONS * 3, vocabulary=520)) == 520
    assert len(build_word_tokenizer([], vocabulary=514)) == 514
    with pytest.raises(ValueError, match="514"):
        build_word_tokenizer(CAPTIONS, vocabulary=513)
