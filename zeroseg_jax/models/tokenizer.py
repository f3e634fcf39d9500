"""Building a small CLIP tokenizer from captions: byte-level BPE, lower-cased, with `</w>` at the end of words."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


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
