"""Reads weight files of torch (`.bin`, `.pth`, `.pt`) as data, without torch and without running code.

Since version 1.6 `torch.save` writes a zip archive. Its entry `data.pkl` is a pickle that describes the tensors, and
each uncompressed entry `data/KEY` has the numbers of one storage. The pickle is not unpickled. `torch_pickle`
interprets its opcodes instead, and can build only tensors, parameters, dictionaries, lists, tuples, strings and
numbers. A few other classes that training scripts save, such as `argparse.Namespace`, become placeholders. Every other
name raises an error.

The tensors are views of the memory-mapped file. Parts of the file that no tensor needs are not read.
"""

import mmap
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.weights.torch_pickle import Broken, Global, Refused, Skipped, StoredTensor, interpret

WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
"""Keys under which training scripts save the weights. MAE writes "model", and OpenCLIP writes "state_dict"."""


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a torch file by name, read-only, in the dtypes of the file.

    The file is a state dict, or a dictionary that has one under a key of `WRAPPERS`.

    Raises:
        InputError: the file is not in torch's zip format, is broken, contains other objects, or has no state dict.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            _check_beginning(path, file.read(64))
            archive = _Archive(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return {name: archive.array(tensor) for name, tensor in _state_dict(path, interpret(archive.pickle)).items()}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except Broken as error:
        raise InputError(f"{path} is broken or not a weight file of torch ({error}), fetch it again") from error
    except Refused as error:
        raise InputError(
            f"{path} has {error}; no code was run; look for a safetensors file or a plain state dict of the model"
        ) from error


def _check_beginning(path: Path, start: bytes) -> None:
    """Raises a clear error if the first bytes of a file show that it is something else."""
    if not start:
        raise Broken("it is empty")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path} is a Git LFS pointer, not the weights; fetch the file itself, such as by git lfs pull"
        )
    if not start.startswith(b"PK\x03\x04"):
        if start[:1] == b"\x80":
            raise InputError(
                f"{path} is in torch's old form from before version 1.6, a bare pickle, which is not read; convert it"
                " once where torch is installed: torch.save(torch.load(OLD, weights_only=True), NEW)"
            )
        raise Broken("it does not begin as a zip archive")


class _Archive:
    """The entries of the zip archive, as views of the memory-mapped file."""

    def __init__(self, content: mmap.mmap):
        self._content = content
        try:
            with zipfile.ZipFile(content) as archive:  # type: ignore[call-overload]
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, struct.error) as error:
            raise Broken(str(error) or "its table of entries cannot be read") from error
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise Broken("two of its entries have one name")
        pickles = [name for name in self._entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Broken("it has no data.pkl")
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}constants.pkl" in self._entries:
            raise Refused("code in it: it is a TorchScript program")
        byteorder = f"{self._root}byteorder"
        if byteorder in self._entries and bytes(self._bytes(byteorder)) != b"little":
            raise Broken("its numbers are not little-endian")
        self.pickle = bytes(self._bytes(pickles[0]))
        self._checked: dict[str, memoryview] = {}

    def array(self, tensor: StoredTensor) -> np.ndarray:
        storage, dtype = tensor.storage, tensor.storage.dtype
        if storage.key not in self._checked:
            self._checked[storage.key] = self._bytes(f"{self._root}data/{storage.key}")
        numbers = self._checked[storage.key]
        if len(numbers) != storage.size * dtype.itemsize:
            raise Broken(f"its entry data/{storage.key} has {len(numbers)} bytes, not {storage.size} x {dtype}")
        if dtype == np.bool_:  # numpy allows only the bytes 0 and 1
            numbers = memoryview((np.frombuffer(numbers, np.uint8) != 0).tobytes())
        flat = np.frombuffer(numbers, dtype)[tensor.offset :]
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)

    def _bytes(self, name: str) -> memoryview:
        """The stored bytes of an entry, after a check of its checksum."""
        entry = self._entries.get(name)
        if entry is None:
            raise Broken(f"it has no entry {name}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise Broken(f"its entry {name} is compressed or encrypted, which torch never writes")
        header = self._content[entry.header_offset : entry.header_offset + 30]
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise Broken(f"its entry {name} is not where the table says")
        begin = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        data = memoryview(self._content)[begin : begin + entry.file_size]
        if len(data) != entry.file_size:
            raise Broken(f"its entry {name} is cut short")
        # `torch.serialization.set_crc32_options(False)` writes 0 instead of a checksum
        if entry.CRC and zlib.crc32(data) != entry.CRC:
            raise Broken(f"the checksum of its entry {name} is wrong")
        return data


def _state_dict(path: Path, root: Any) -> dict[str, StoredTensor]:
    """The dictionary of tensors in the object that the pickle describes."""
    state_dict = root
    if isinstance(root, dict) and not any(isinstance(value, StoredTensor) for value in root.values()):
        state_dict = next((root[name] for name in WRAPPERS if isinstance(root.get(name), dict)), None)
    if not isinstance(state_dict, dict) or not any(isinstance(value, StoredTensor) for value in state_dict.values()):
        raise InputError(
            f"{path} is not a dictionary of tensors and has none under {', '.join(WRAPPERS)}; give a file"
            " that torch.save made of a state dict"
        )
    tensors = {name: value for name, value in state_dict.items() if isinstance(value, StoredTensor)}
    for name, value in state_dict.items():
        if not isinstance(name, str) or (name not in tensors and isinstance(value, dict | list | tuple)):
            kind = value.name if isinstance(value, Skipped | Global) else type(value).__name__
            raise InputError(f"{path} has a {kind} among its tensors, at {name!r}; give a file of tensors only")
    return tensors  # plain numbers, which some files also contain, are left out
