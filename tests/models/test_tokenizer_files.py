"""Parity of the tokenizers with those of transformers, on tiny ones in files as transformers saves them."""

import json

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GemmaTokenizer, Siglip2Tokenizer, SiglipTokenizer, XLMRobertaTokenizer

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.tokenizer_files import load_metaclip_2_tokenizer, load_siglip_tokenizer

CAPTIONS = ["a photo of a cat on the grass", "it's the star's ring", "zebra and naive cafe 42", "dogs, cats and birds!"]
TEXTS = [
    *("a red star", "A RED  Star!", "", "zebra, naïve café 42 🦓", "it's the star's ring", "a star and " * 60),
    *("ﬁre Ｈ！", "a_b c", "tab\there\nline", " lead and trail ", "a–b “q”", "ÀÉ ΣΑ", "a . b"),
]
OPTIONS = {"padding": "max_length", "truncation": True, "max_length": 64}


def ids(tokenizer, texts=TEXTS) -> list[list[int]]:
    return tokenizer(list(texts), **OPTIONS)["input_ids"]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A SentencePiece model with SigLIP's special tokens: padding 0 (which it never uses), end 1, unknown 2."""
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "captions.txt").write_text("\n".join(CAPTIONS * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "captions.txt"),
        model_prefix=str(folder / "trained"),
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    SiglipTokenizer(str(folder / "trained.model")).save_pretrained(folder / "saved")
    return folder / "saved"


def pieces(spiece) -> list[tuple[str, float]]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(spiece / "spiece.model"))
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]


def test_siglips_sentencepiece_model(spiece):
    expected = ids(SiglipTokenizer.from_pretrained(spiece))
    assert ids(load_siglip_tokenizer(spiece)) == expected
    assert expected[2] == [1] * 64  # nothing but the end token, which also pads
    assert expected[0] == expected[1]  # neither case nor punctuation
    assert len(expected[5]) == 64 and expected[5][-2] != 1 and expected[5][-1] == 1  # cut, and still ended


def test_siglips_tokenizer_json(spiece, tmp_path):
    backend = Tokenizer(models.Unigram(pieces(spiece), unk_id=2))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = load_siglip_tokenizer(tmp_path)
    expected = ids(SiglipTokenizer.from_pretrained(spiece))
    assert ids(ours) == expected
    ours.save_pretrained(tmp_path / "again")
    assert ids(load_siglip_tokenizer(tmp_path / "again")) == ids(AutoTokenizer.from_pretrained(tmp_path / "again"))
    assert ids(load_siglip_tokenizer(tmp_path / "again")) == expected


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Gemma's kind of byte-pair encoding, as SigLIP 2's files have it."""
    folder = tmp_path_factory.mktemp("gemma")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    learner = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    first = special + [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=first, show_progress=False)
    learner.train_from_iterator(CAPTIONS * 5, trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    options = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    GemmaTokenizer(vocab=learnt["vocab"], merges=merges, **options).save_pretrained(folder)
    return folder


def test_siglip_2s_tokenizer(gemma, tmp_path):
    ours = load_siglip_tokenizer(gemma)
    result = ids(ours)
    assert result == ids(GemmaTokenizer.from_pretrained(gemma), [text.lower() for text in TEXTS])
    assert result == ids(Siglip2Tokenizer.from_pretrained(gemma))
    assert result[2] == [1] + [0] * 63  # the end token, and padding
    assert result[0] != result[1]  # punctuation counts, and so do spaces
    assert len(result[5]) == 64 and result[5][-1] == 1
    ours.save_pretrained(tmp_path)
    assert ids(load_siglip_tokenizer(tmp_path)) == ids(AutoTokenizer.from_pretrained(tmp_path)) == result


def test_metaclip_2s_tokenizer(spiece, tmp_path):
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    XLMRobertaTokenizer(vocab=[*special, *pieces(spiece)[3:], ("<mask>", 0.0)]).save_pretrained(tmp_path)
    ours = load_metaclip_2_tokenizer(tmp_path)
    result = ids(ours)
    assert result == ids(XLMRobertaTokenizer.from_pretrained(tmp_path))
    assert result[2] == [0, 2] + [1] * 62
    assert result[5][0] == 0 and result[5][-1] == 2
    ours.save_pretrained(tmp_path / "again")
    assert ids(load_metaclip_2_tokenizer(tmp_path / "again")) == result


def test_the_small_metaclip_2s_have_siglips_tokenizer(spiece):
    assert ids(load_metaclip_2_tokenizer(spiece)) == ids(SiglipTokenizer.from_pretrained(spiece))


@pytest.mark.parametrize("load", [load_siglip_tokenizer, load_metaclip_2_tokenizer])
def test_files_that_cannot_be_used(load, tmp_path):
    assert load(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        load(tmp_path)
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="has no token <"):
        load(tmp_path)


def test_a_broken_sentencepiece_model(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"spiece\.model cannot be read") as error:
        load_siglip_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
