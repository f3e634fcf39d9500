"""The reader of torch's files: exact for what `torch.save` writes, and one sentence for everything else."""

import argparse
import collections
import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.weights.torch_zip import read_torch


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return {
        "plain": base,
        "tied": base,
        "transposed": base.t(),
        "strided": base[1:5:2, ::3],
        "expanded": torch.randn(1, 3).expand(4, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2, 1, 2).double(),
        "long": torch.arange(4)[None],
        "int": torch.arange(4, dtype=torch.int32),
        "short": torch.arange(-2, 2, dtype=torch.int16),
        "char": torch.arange(-2, 2, dtype=torch.int8),
        "byte": torch.arange(4, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(4.6052),
        "empty": torch.zeros(0, 4),
    }


def save(path: Path, content, **options) -> Path:
    torch.save(content, path, **options)
    return path


def assert_exact(actual: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        tensor, array = tensor.detach(), actual[name]
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch."), name
        if tensor.dtype == torch.bfloat16:
            tensor, array = tensor.view(torch.int16), array.view(np.int16)
        np.testing.assert_array_equal(array, tensor.numpy(), err_msg=name, strict=True)


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


class Evaluated(Code):
    def __reduce__(self):
        return eval, (f"open({str(self.proof)!r}, 'w')",)


def test_every_kind_of_tensor_is_exact(tmp_path):
    assert_exact(read_torch(save(tmp_path / "x.bin", tensors())), tensors())


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_training_checkpoint_is_read_without_what_surrounds_its_weights(wrapper, tmp_path):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(
        lr=1e-3, out=Path("out"), device=torch.device("cpu"), dtype=torch.bfloat16, best=np.float64(0.5), names={"a"}
    )
    content = {
        "args": args,
        "epoch": 3,
        wrapper: collections.OrderedDict(tensors()),
        "optimizer": optimizer.state_dict(),
        "scaler": collections.defaultdict(int, a=1),
    }
    assert_exact(read_torch(save(tmp_path / "x.pth", content)), tensors())


def test_a_module_of_torch_by_its_state_dict(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    assert_exact(read_torch(save(tmp_path / "x.pt", module.state_dict())), module.state_dict())


def test_numbers_beside_tensors_are_no_weights(tmp_path):
    result = read_torch(save(tmp_path / "x.pt", {"input_resolution": 224, "w": torch.ones(2)}))
    assert list(result) == ["w"]


def test_a_file_whose_checksums_were_left_out(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "x.pt", tensors())
    finally:
        torch.serialization.set_crc32_options(True)
    assert_exact(read_torch(path), tensors())


def test_the_tensors_are_views_of_the_file(tmp_path):
    result = read_torch(save(tmp_path / "x.pt", {"a": torch.ones(4), "b": torch.ones(3)}))
    assert not any(array.flags.owndata or array.flags.writeable for array in result.values())


@pytest.mark.parametrize(
    "content, said",
    [
        (
            lambda proof: {"a": torch.ones(2), "x": Code(proof)},
            r"has code in it: its pickle names 'posix\.system'",
        ),
        (lambda proof: {"a": torch.ones(2), "x": Evaluated(proof)}, r"code in it: its pickle names '.*\.eval'"),
        (lambda proof: {"model": {"a": torch.ones(2)}, "x": Code(proof)}, r"code in it.*\.system"),
        (lambda proof: torch.nn.Linear(2, 2), r"code in it: its pickle names 'torch\.nn\.modules\.linear\.Linear'"),
        (lambda proof: {"a": torch.ones(2).to(torch.complex64)}, r"a kind that is not read \(torch\.ComplexFloatS"),
        (lambda proof: {"a": torch.ones(2).to(torch.float8_e4m3fn)}, "a kind that is not read"),
        (lambda proof: {"a": torch.eye(2).to_sparse()}, "a kind that is not read"),
        (
            lambda proof: {"a": torch.ones(2), "b": argparse.Namespace()},
            r"Namespace among its tensors, at 'b'",
        ),
        (lambda proof: {"a": torch.ones(2), "b": {"c": torch.ones(2)}}, "a dict among its tensors"),
        (lambda proof: [torch.ones(2)], "not a dictionary of tensors"),
        (lambda proof: {"model": [torch.ones(2)]}, "not a dictionary of tensors"),
        (lambda proof: {}, "not a dictionary of tensors"),
    ],
)
def test_anything_else_is_refused_and_nothing_runs(content, said, tmp_path):
    proof = tmp_path / "proof"
    with pytest.raises(InputError, match=said) as error:
        read_torch(save(tmp_path / "x.bin", content(proof)))
    assert "\n" not in str(error.value) and str(tmp_path / "x.bin") in str(error.value)
    assert not proof.exists()


def test_files_that_are_no_torch_zip(tmp_path):
    path = tmp_path / "x.bin"

    def refuses(said, content=None):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=said) as error:
            read_torch(path)
        assert "\n" not in str(error.value)

    refuses("cannot be read")
    refuses("empty", b"")
    refuses("Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refuses("does not begin as a zip archive", b"<html>Not found</html>")
    refuses("broken or not a weight file", b"PK\x03\x04" + bytes(100))
    refuses("old form.*convert it once", pickle.dumps({"a": 1}, protocol=2))
    save(path, {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    refuses("old form.*convert it once.*weights_only=True")
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    refuses("TorchScript program")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes/readme.txt", "hello")
    refuses("no data.pkl")


def rewrite(source: Path, path: Path, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    """A copy of a torch file with other contents of some of its entries, with checksums that fit."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, entries.get(name.split("/", 1)[1].replace(".", "_"), old.read(name)))
    return path


def test_archives_that_lie(tmp_path):
    good = save(tmp_path / "good.bin", {"w": torch.arange(12.0).reshape(3, 4)})
    with zipfile.ZipFile(good) as archive:
        data = archive.read("good/data.pkl")
    again = lambda **changes: read_torch(rewrite(good, tmp_path / "x.bin", **changes))  # noqa: E731
    assert_exact(again(), {"w": torch.arange(12.0).reshape(3, 4)})
    with pytest.raises(InputError, match="compressed or encrypted"):
        again(compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="not little-endian"):
        again(byteorder=b"big")
    # K\x03K\x04\x86 is the shape (3, 4), K\x04K\x01\x86 the strides
    assert data.count(b"K\x03K\x04\x86") == 1 and data.count(b"K\x04K\x01\x86") == 1
    for lie in (b"K\x04K\x04\x86", b"K\x03K\x05\x86", b"J\xff\xff\xff\xffK\x04\x86"):
        with pytest.raises(InputError, match=r"beyond its storage|described wrongly"):
            again(data_pkl=data.replace(b"K\x03K\x04\x86", lie))
    for lie in (b"K\x05K\x01\x86", b"K\x04J\xff\xff\xff\xff\x86"):
        with pytest.raises(InputError, match=r"beyond its storage|described wrongly"):
            again(data_pkl=data.replace(b"K\x04K\x01\x86", lie))
    huge = b"\x8a\x08" + struct.pack("<q", 2**60)
    with pytest.raises(InputError, match="too large"):
        again(
            data_pkl=data.replace(b"K\x03K\x04\x86", huge + b"K\x04\x86").replace(b"K\x04K\x01\x86", b"K\x00K\x01\x86")
        )
    with pytest.raises(InputError, match="has 52 bytes"):
        with zipfile.ZipFile(good) as archive:
            numbers = archive.read("good/data/0")
        again(**{"data/0": numbers + bytes(4)})
    assert b"K\x0ct" in data  # the number of elements of the storage
    with pytest.raises(InputError, match=r"has 48 bytes, not 11 x float32|beyond its storage"):
        again(data_pkl=data.replace(b"K\x0ct", b"K\x0bt"))


def mutated(rng: random.Random, content: bytes) -> bytes:
    """The content with one to four bytes changed, cut out, or put in, or without its end."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(result))
        kind = rng.random()
        if kind < 0.7:
            result[at] = rng.randrange(256)
        elif kind < 0.8:
            del result[at : at + rng.randrange(1, 9)]
        elif kind < 0.9:
            result[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            result = result[: at + 1]
    return bytes(result)


def mutations_that_end_badly(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Mutates a file `count` times in every place, and `count` times only in its pickle, whose checksum is made to fit.

    Returns what was neither an InputError of one line nor, for the first kind, the right tensors.
    """
    rng, result = random.Random(seed), []
    good = save(folder / "good.bin", {"model": collections.OrderedDict(tensors()), "epoch": 1})
    content = good.read_bytes()
    with zipfile.ZipFile(good) as archive:
        data = archive.read("good/data.pkl")
    for i in range(2 * count):
        path = folder / "x.bin"
        if i < count:
            path.write_bytes(mutated(rng, content))
        else:
            rewrite(good, path, data_pkl=mutated(rng, data))
        try:
            arrays = read_torch(path)
            if i < count:
                assert_exact(arrays, tensors())
            else:
                sum(float(array.astype(np.float32).sum()) for array in arrays.values() if array.size < 1e6)
        except InputError as error:
            if "\n" in str(error):
                result.append(f"{i}: {error}")
        except Exception as error:
            result.append(f"{i}: {type(error).__name__} {error}")
    return result


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # sums of random bytes
def test_damaged_files_are_read_right_or_refused(tmp_path):
    assert mutations_that_end_badly(tmp_path, count=200) == []


def test_reading_needs_no_torch_and_no_unpickler(tmp_path, monkeypatch):
    path = save(tmp_path / "x.bin", {"a": torch.ones(2)})

    def unpickles(*args, **kwargs):
        raise AssertionError("a pickle was loaded")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, unpickles)
    monkeypatch.setattr(torch, "load", unpickles)
    with pytest.raises(AssertionError):
        pickle.load(io.BytesIO())
    assert_exact(read_torch(path), {"a": torch.ones(2)})
