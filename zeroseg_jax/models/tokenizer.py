"""CLIP's tokenizer, and small tokenizers of the same kind that are trained on captions.

Both are byte-level BPE on lower-cased text, with `</w>` at the end of words.
"""

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
    """Trains a tokenizer in CLIP's format on `texts`. Frequent words become single tokens.

    As in OpenAI's tokenizer, each byte has two tokens, one inside a word and one at its end, so any word can be
    written. The order of the ids is bytes, merges, start and end of text. The end token has the highest id, so both
    ways of finding it work (`TextConfig.pooled`).

    Args:
        texts: the captions.
        vocabulary: the greatest number of ids, at least 514.
        context: the number of tokens to which texts are padded and cut.

    Raises:
        ValueError: `vocabulary` is below 514.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = alphabet + [byte + "</w>" for byte in alphabet]
    if vocabulary < len(base) + 2:
        raise ValueError(f"a byte-level vocabulary needs at least {len(base) + 2} ids, got {vocabulary}")

    clip = CLIPTokenizer().backend_tokenizer  # for its lower-casing and its splitting into words
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        # fixed ids of the bytes also fix the order of merges that are equally frequent
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
    """The tokenizer of OpenAI's CLIP and of OpenCLIP's models. Most of their files do not contain it.

    The order of its 49408 ids is bytes, bytes at the end of a word, merges, start and end of text.
    """
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    base = _bytes_in_order()
    tokens = [*base, *(byte + "</w>" for byte in base), *(left + right for left, right in merges), START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context)  # type: ignore[arg-type]


def _bytes_in_order() -> list[str]:
    """The 256 letters that stand for bytes in byte-level BPE, printable bytes first (GPT-2's order)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(others)]


def clean(text: str) -> str:
    """Cleans a text as CLIP's training did, except for lower-casing, which the tokenizer does.

    ftfy corrects curly quotes, full-width letters and wrongly decoded letters. HTML entities are replaced, and spaces
    become single.
    """
    import ftfy  # takes a tenth of a second, which only texts need

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
