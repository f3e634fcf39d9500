"""Open-vocabulary segmentation distilled from a frozen CLIP image encoder (ZeroSeg, ICCV 2023), in JAX/Flax.

`load` returns a model that segments images by words. `load_clip` returns a CLIP or SigLIP. Input that the user can
correct, such as a broken image, an empty label or a folder without a model, raises `InputError`, a `ValueError` with a
message of one sentence.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zeroseg_jax.errors import InputError
    from zeroseg_jax.models.clip_encoder import load_clip
    from zeroseg_jax.segment import load

# transformers is used only for its tokenizers; without this setting it warns at each start that PyTorch is missing
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__all__ = ["InputError", "__version__", "load", "load_clip"]

__version__ = "0.1.0"  # setup.cfg reads this line

_MODULES = {"InputError": "errors", "load": "segment", "load_clip": "models.clip_encoder"}


def __getattr__(name: str) -> Any:
    # imported at first use, because the worker processes of the data pipeline need neither JAX nor the models
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
