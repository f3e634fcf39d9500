"""Open-vocabulary segmentation distilled from a frozen CLIP image encoder (ZeroSeg, ICCV 2023), in JAX/Flax.

`load` gives a model that segments images by words, `load_clip` a CLIP or SigLIP. What a user can mend, such as a broken
image, an empty label or a folder without a model, raises `InputError` with one sentence; it is a `ValueError`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zeroseg_jax.errors import InputError
    from zeroseg_jax.models.clip_encoder import load_clip
    from zeroseg_jax.segment import load

# else transformers, which is here for its tokenizers, says on every start that there is no PyTorch
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__all__ = ["InputError", "__version__", "load", "load_clip"]

__version__ = "0.1.0"  # setup.cfg reads it here

_HOMES = {"InputError": "errors", "load": "segment", "load_clip": "models.clip_encoder"}


def __getattr__(name: str) -> Any:
    # imported when asked for: the worker processes of the data pipeline need neither JAX nor the models
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
