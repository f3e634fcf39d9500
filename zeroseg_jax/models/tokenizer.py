"""CLIP's own tokenizer, and small ones from captions: byte-level BPE, lower-cased, `</w>` at the end of words."""

import gzip
import html
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = Path(__file__).parents[1] / "assets" / "clip_tokenizer" / "merges.txt.gz"


def build_word_tokenizer(texts: Iterable[str], *, vocabulary: int = 1000, context: int = 77) -> CLIPTokenizer:
    """A tokenizer in CLIP's format whose merges are learned from `texts`; frequent words become single tokens.

    `vocabulary` is the most ids it may have. As in OpenAI's tokenizer every byte has a token of its own, once inside
    and once at the end of a word, so that words that `texts` lack still have ids: 514 ids are the least. The ids are
    ordered bytes, merges, start and end of text: the end token is the highest id, which suits both ways of finding it.
    `context` is the number of tokens that a text is padded and cut to.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = alphabet + [byte + "</w>" for byte in alphabet]
    if vocabulary < len(base) + 2:
        raise ValueError(f"a byte-level vocabulary needs at least {len(base) + 2} ids, got {vocabulary}")

    clip = CLIPTokenizer().backend_tokenizer  # its lower-casing and its splitting into words
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        # named beforehand, the bytes get the same ids in every run, and with them ties between merges one order
        special_tokens=base,
        end_of_word_suffix="</w>",
        min_frequency=2,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)

    vocab = {token: i for i, token in enumerate(base)}
    merges = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        merges.append((left, right))
        vocab.setdefault(left + right, len(vocab))
    for token in (START, END):
        vocab[token] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context)  # type: ignore[arg-type]


def clip_tokenizer(context: int = 77) -> CLIPTokenizer:
    """The tokenizer of OpenAI's CLIP and of OpenCLIP's models, whose files rarely have it beside them.

    Its 49408 ids are ordered bytes, bytes at the end of a word, merges, start and end of text.
    """
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    base = _bytes_in_order()
    tokens = [*base, *(byte + "</w>" for byte in base), *(left + right for left, right in merges), START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context)  # type: ignore[arg-type]


def _bytes_in_order() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes as, the printable bytes first (GPT-2's order)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(others)]


def clean(text: str) -> str:
    """A text as CLIP's training saw it: mended by ftfy (curly quotes, full-width letters, mojibake), HTML entities
    resolved, single spaces. Lower-casing is the tokenizer's."""
    import ftfy  # a tenth of a second that nobody without texts need wait for

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
