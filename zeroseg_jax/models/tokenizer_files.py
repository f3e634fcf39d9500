"""Reads the tokenizers of SigLIP, SigLIP 2 and MetaCLIP 2 from their files. They differ from CLIP's.

Texts of SigLIP and SigLIP 2 have no start token, are padded on the right, and end with one end token even if they are
cut. SigLIP (a SentencePiece model) needs lower-cased texts without punctuation, and its end token is also the padding.
SigLIP 2 (Gemma's byte-pair encoding) needs lower-cased texts and has a padding token. The authors' code (big_vision)
works this way, although some of the published files say otherwise. MetaCLIP 2 uses XLM-V's tokenizer without changes.
Its small models (mt5) use SigLIP's with the vocabulary of mT5.
"""

import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, processors

from zeroseg_jax.errors import InputError


def load_siglip_tokenizer(folder: Path) -> Any:
    """SigLIP's or SigLIP 2's tokenizer in the interface of `transformers`, or None if the folder has none.

    Reads spiece.model, or else tokenizer.json. Raises InputError for a broken file.
    """
    return _load(folder, _siglip_from_json)


def load_metaclip_2_tokenizer(folder: Path) -> Any:
    """MetaCLIP 2's tokenizer in the interface of `transformers`, or None if the folder has none.

    Reads spiece.model, or else tokenizer.json. Raises InputError for a broken file.
    """
    return _load(folder, _metaclip_2_from_json)


def _load(folder: Path, from_json: Callable[[Path], Any]) -> Any:
    spiece, fast = folder / "spiece.model", folder / "tokenizer.json"
    if spiece.is_file():
        return _read(_from_spiece, spiece)
    return from_json(fast) if fast.is_file() else None


def _siglip_from_json(file: Path) -> Any:
    backend = _read(Tokenizer.from_file, file)
    end, pad = ("<eos>", "<pad>") if isinstance(backend.model, models.BPE) else ("</s>", "</s>")
    _check_tokens(backend, file, end, pad)
    steps: list[Any] = [normalizers.Lowercase()] if end == "<eos>" else _canonical()
    if not _begins_with(backend.normalizer, steps):
        backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, backend.token_to_id(end))]
    )
    return _wrap(backend, end, pad)


def _metaclip_2_from_json(file: Path) -> Any:
    backend = _read(Tokenizer.from_file, file)
    _check_tokens(backend, file, "<s>", "</s>", "<pad>")
    return _wrap(backend, "</s>", "<pad>")


def _from_spiece(file: str) -> Any:
    from transformers import SiglipTokenizer

    return SiglipTokenizer(file)


def _read(read: Callable[[str], Any], file: Path) -> Any:
    try:
        return read(str(file))
    except Exception as error:  # both libraries raise plain Exceptions for broken files
        raise InputError(f"the tokenizer {file} cannot be read ({error}), fetch it again") from error


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
    """The steps of big_vision's canonical text, the same as in `transformers.SiglipTokenizer`."""
    return [
        normalizers.Lowercase(),
        normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]


def _begins_with(normalizer: Any, steps: list[Any]) -> bool:
    """Whether a normalizer already begins with these steps, as in a file that this package saved."""
    present = json.loads(normalizer.__getstate__()).get("normalizers", []) if normalizer else []
    return present[: len(steps)] == [json.loads(step.__getstate__()) for step in steps]
