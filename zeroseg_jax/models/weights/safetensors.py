"""Reads weight files in the safetensors format."""

from pathlib import Path

import ml_dtypes  # noqa: F401 (registers bfloat16 in numpy, which safetensors needs)
import numpy as np
from safetensors import SafetensorError, safe_open

from zeroseg_jax.errors import InputError


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name, in the dtypes of the file. Raises InputError for a broken file."""
    try:
        with Path(path).open("rb") as file:
            if file.read(27).startswith(b"version https://git-lfs"):
                raise InputError(f"{path} is a Git LFS pointer, not the weights; fetch the file itself (git lfs pull)")
        with safe_open(path, framework="np") as content:
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError, KeyError) as error:  # TypeError: numpy does not have the dtype
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is broken or cut short ({error}), fetch it again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
