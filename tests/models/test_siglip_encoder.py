"""SigLIP with tokenizer and preprocessing: parity with transformers' SiglipProcessor, and saving."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, SiglipImageProcessorPil, SiglipModel

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip_encoder import ClipEncoder, load_clip
from zeroseg_jax.models.preprocessing import Preprocessing

TEXTS = ["a red star", "A RED  Star!", "", "zebra on the grass", "a star and " * 9]


@pytest.fixture(scope="module")
def encoder(tiny_siglip) -> ClipEncoder:
    return load_clip(tiny_siglip)


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in ((8, 8), (37, 61), (90, 41), (5, 31))]


def test_embeddings_from_images_and_words(encoder, tiny_siglip):
    theirs = SiglipModel.from_pretrained(tiny_siglip).eval()
    processor = SiglipImageProcessorPil.from_pretrained(tiny_siglip)
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    options = {"padding": "max_length", "truncation": True, "max_length": 24}
    tokens = AutoTokenizer.from_pretrained(tiny_siglip)(TEXTS, **options, return_tensors="pt")["input_ids"]
    assert np.array_equal(encoder.tokenize(TEXTS), tokens.numpy())
    with torch.no_grad():
        out = theirs(input_ids=tokens, pixel_values=pixels)
    assert np.abs(encoder.encode_image(pictures()) - out.image_embeds.numpy()).max() < 1e-4
    texts = encoder.encode_text(TEXTS)
    assert np.abs(texts - out.text_embeds.numpy()).max() < 1e-4
    assert np.array_equal(texts[0], texts[1])  # canonical texts have neither case nor punctuation
    assert np.abs(encoder.encode_text(TEXTS[3:4]) - texts[3]).max() < 1e-5  # whatever is in the batch beside it


def test_a_text_that_does_not_fit_is_cut_or_refused(encoder):
    assert encoder.token_counts(["ab cd"]) == [7]
    assert encoder.tokenize(["z" * 50]).shape == (1, 24)
    with pytest.raises(InputError, match="has 52 tokens, the model reads 24"):
        encoder.encode_text(["z" * 50], truncate=False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"height": 20, "width": 20}, "resample": 2},  # SigLIP 2's
        {"size": {"height": 12, "width": 20}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
        {"do_normalize": False},
    ],
    ids=lambda settings: "-".join(settings) or "siglip",
)
def test_preprocessing_equals_siglip_image_processor(settings):
    theirs = SiglipImageProcessorPil(**settings)
    default = Preprocessing.whole(224)
    for ours in (Preprocessing.from_hf(settings, default), Preprocessing.from_hf(theirs.to_dict(), default)):
        assert Preprocessing.from_hf(ours.to_hf("SiglipImageProcessor"), default) == ours
        for image in (*pictures(), Image.fromarray(pictures()[1])):
            expected = theirs(image, return_tensors="np")["pixel_values"]
            assert np.array_equal(ours([image]), expected.transpose(0, 2, 3, 1))


def test_without_files_for_it_the_preprocessing_is_siglips(tiny_siglip, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_siglip / name).read_bytes())
    encoder = load_clip(tmp_path)
    assert encoder.preprocessing == Preprocessing.whole(8)
    assert np.abs(encoder.normalise(np.zeros((1, 8, 8, 3), np.float32)) + 1).max() == 0
    with pytest.raises(InputError, match=r"spiece\.model"):
        encoder.encode_text(["a star"])


@pytest.mark.end_to_end
def test_a_saved_folder_is_the_same_model(encoder, tmp_path):
    encoder.save(tmp_path)
    again = load_clip(tmp_path)
    assert again.model.config == encoder.model.config and again.preprocessing == encoder.preprocessing
    pixels = encoder.preprocess(pictures())
    assert np.array_equal(again.vision(pixels), encoder.vision(pixels))
    assert np.array_equal(again.tokenize(TEXTS), encoder.tokenize(TEXTS))


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_refused(tiny_siglip, tmp_path):
    for file in tiny_siglip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    AutoTokenizer.from_pretrained(tiny_siglip).train_new_from_iterator(["é à ü"] * 9, 60).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens([f"new{i}" for i in range(40)])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="vocab_size 30; use the files of one checkpoint"):
        load_clip(tmp_path)
