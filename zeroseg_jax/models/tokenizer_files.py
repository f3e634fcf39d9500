"""Reading the tokenizers of SigLIP, SigLIP 2 and MetaCLIP 2, which are not CLIP's, from the files beside the weights.

SigLIP and SigLIP 2 end a text, cut or not, with one end token, have no start token, and pad on the right. SigLIP (a
SentencePiece model) reads lower-cased texts without punctuation and pads with its end token. SigLIP 2 (Gemma's
byte-pair encoding) reads lower-cased texts and has a padding token. So it is in the authors' code (big_vision),
whatever the files say. MetaCLIP 2 has XLM-V's tokenizer as it is, and its small models (mt5) that of SigLIP with mT5's
tokens.
"""

import json
import re
import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, processors

from zeroseg_jax.errors import InputError


def load_siglip_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, of `transformers`' interface; None where there is none.

    spiece.model, SigLIP's own file, comes before tokenizer.json. Raises InputError where the file is broken.
    """
    spiece, fast = folder / "spiece.model", folder / "tokenizer.json"
    if spiece.is_file():
        return _read(_from_spiece, spiece)
    if not fast.is_file():
        return None
    backend = _read(_from_json, fast)
    end, pad = ("<eos>", "<pad>") if isinstance(backend.model, models.BPE) else ("</s>", "</s>")
    _check_tokens(backend, fast, end, pad)
    steps: list[Any] = [normalizers.Lowercase()] if end == "<eos>" else _canonical()
    if not _begins_with(backend.normalizer, steps):
        backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, backend.token_to_id(end))]
    )
    return _wrap(backend, end, pad)


def load_metaclip_2_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, of `transformers`' interface; None where there is none.

    Raises InputError where the file is broken.
    """
    spiece, fast = folder / "spiece.model", folder / "tokenizer.json"
    if spiece.is_file():
        return _read(_from_spiece, spiece)
    if not fast.is_file():
        return None
    backend = _read(_from_json, fast)
    _check_tokens(backend, fast, "<s>", "</s>", "<pad>")
    return _wrap(backend, "</s>", "<pad>")


def _read(read: Any, file: Path) -> Any:
    try:
        return read(str(file))
    except Exception as error:  # both libraries raise bare Exceptions for broken files
        raise InputError(f"the tokenizer {file} cannot be read ({error}), fetch it again") from error


def _from_spiece(file: str) -> Any:
    from transformers import SiglipTokenizer

    return SiglipTokenizer(file)


def _from_json(file: str) -> Tokenizer:
    return Tokenizer.from_file(file)


def _check_tokens(backend: Tokenizer, file: Path, *tokens: str) -> None:
    for token in tokens:
        if backend.token_to_id(token) is None:
            raise InputError(f"the tokenizer {file} has no token {token}; use the files of one checkpoint")


def _wrap(backend: Tokenizer, end: str, pad: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token=pad, unk_token="<unk>", padding_side="right"
    )


def _canonical() -> list[Any]:
    """big_vision's canonical text, as `transformers.SiglipTokenizer` has it."""
    return [
        normalizers.Lowercase(),
        normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]


def _begins_with(normalizer: Any, steps: list[Any]) -> bool:
    """Whether these are its first steps already, as in a file that was saved here."""
    found = json.loads(normalizer.__getstate__()).get("normalizers", []) if normalizer else []
    return found[: len(steps)] == [json.loads(step.__getstate__()) for step in steps]
