"""Interprets the pickle inside a torch file opcode by opcode, without unpickling it.

The result of `interpret` consists of tensors (the position of their numbers in the file), dictionaries, lists, tuples,
strings and numbers. Objects of the classes in `SKIPPED` become placeholders.
"""

import pickletools
import struct
from math import prod
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_NUMBERS = (object, bool, int, float, complex, str, bytes, bytearray)
_CONTAINERS = (dict, list, tuple, set, frozenset)
# Classes in published checkpoints whose objects become placeholders. None of them is imported or called.
SKIPPED = frozenset(
    {
        "argparse.Namespace",
        "collections.defaultdict",
        "collections.Counter",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.Path",  # the names in Python 3.13
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "torch.device",
        "torch.Size",
        *(f"torch.{name}" for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")),
        *(f"{core}.multiarray.{name}" for core in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
        "numpy.dtype",
        "numpy.ndarray",
        "_codecs.encode",  # protocol 2 uses it for the bytes of a numpy number
        *(f"{home}.{kind.__name__}" for home in ("builtins", "__builtin__") for kind in (*_NUMBERS, *_CONTAINERS)),
        "__builtin__.long",
    }
)


class Global(NamedTuple):
    """A name in the pickle. It is only compared with known names, and never imported."""

    name: str


class Skipped(NamedTuple):
    """A placeholder for an object of a class in `SKIPPED`."""

    name: str


class Storage(NamedTuple):
    """The numbers of one archive entry."""

    key: str
    dtype: np.dtype
    size: int


class StoredTensor(NamedTuple):
    """A tensor as the pickle describes it: a view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Broken(Exception):
    """Says what is wrong with a file. The caller adds the file's name."""


class Refused(Exception):
    """Says which content of a file is not allowed. The caller adds the file's name."""


_MARK = object()
_PLAIN = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def interpret(pickle: bytes) -> Any:
    """The object that a pickle describes, of the types that the module's docstring lists.

    Raises:
        Broken: the pickle is damaged.
        Refused: it contains something else, such as code.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
        return machine.pop()
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, struct.error) as error:
        raise Broken(f"its pickle ends in {type(error).__name__} {error}".strip()) from error


class _Machine:
    """A pickle's stack and memory."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("an opcode that lacks its argument")
        return value

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"an opcode that expects a {kind.__name__}")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                values = self.stack[i + 1 :]
                del self.stack[i:]
                return values
        raise ValueError("an opcode that lacks its mark")

    def step(self, name: str, argument: Any) -> None:
        """Runs one opcode."""
        push = self.stack.append
        if name in ("PROTO", "FRAME"):
            return
        if name in _PLAIN:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name in _TUPLES:
            push(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
        elif name == "MARK":
            push(_MARK)
        elif name == "TUPLE":
            push(tuple(self.pop_mark()))
        elif name == "LIST":
            push(self.pop_mark())
        elif name == "DICT":
            push(_pairs(self.pop_mark()))
        elif name == "APPEND":
            value = self.pop()
            self._extend([value])
        elif name in ("APPENDS", "ADDITEMS"):
            self._extend(self.pop_mark())
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            self._update([key, value])
        elif name == "SETITEMS":
            self._update(self.pop_mark())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if not self.stack or self.stack[-1] is _MARK:
                raise ValueError("an opcode that stores a missing value")
            self.memory[len(self.memory) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self.memory[argument])
        elif name == "GLOBAL":
            push(_global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            push(_global(module, attribute))
        elif name == "BINPERSID":
            push(_storage(self.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self.pop(), self.pop()
            push(_call(function, arguments))
        elif name == "BUILD":
            self.pop()  # attributes such as a state dict's `_metadata`, which are not weights
            if not isinstance(self.top(object), dict | Skipped | StoredTensor):
                raise ValueError("attributes of an object that cannot have any")
        else:
            raise Refused(f"something other than tensors in it: its pickle uses {name}")

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self.top(object), Skipped):  # a placeholder has no content
            self.top(list).extend(values)

    def _update(self, values: list[Any]) -> None:
        pairs = _pairs(values)
        if not isinstance(self.top(object), Skipped):
            self.top(dict).update(pairs)


def _pairs(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2 or not all(key is None or isinstance(key, str | int | float) for key in values[::2]):
        raise ValueError("a dictionary whose keys are neither names nor numbers")
    return dict(zip(values[::2], values[1::2], strict=True))


def _global(module: Any, name: Any) -> Global:
    """The name module.name. Raises Refused if weight files do not need it."""
    full = f"{module}.{name}"
    if full in _CALLS or full in SKIPPED or (module == "torch" and name in DTYPES):
        return Global(full)
    if full.startswith("torch._utils._rebuild_") or (full.startswith("torch.") and full.endswith("Storage")):
        raise Refused(f"tensors of a kind that is not read ({full[:100]})")
    raise Refused(f"code in it: its pickle names {full[:100]!r}, which is not a tensor")


def _storage(identifier: Any) -> Storage:
    """The storage of a persistent id ("storage", class, key, device, number of elements)."""
    if not isinstance(identifier, tuple) or len(identifier) != 5 or identifier[0] != "storage":
        raise ValueError("a reference to something that is not a storage")
    _, kind, key, _, size = identifier
    name = kind.name.removeprefix("torch.") if isinstance(kind, Global) else ""
    if name not in DTYPES or not isinstance(key, str) or not _is_count(size):
        raise ValueError("a storage of an unknown kind")
    return Storage(key, DTYPES[name], size)


def _call(function: Any, arguments: Any) -> Any:
    if isinstance(function, Global) and isinstance(arguments, tuple):
        if function.name in _CALLS:
            return _CALLS[function.name](arguments)
        if function.name in SKIPPED:
            return Skipped(function.name)
    raise ValueError("a call of an unknown function")


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """`torch._utils._rebuild_tensor_v2` (storage, offset, size, stride, requires_grad, hooks[, metadata])."""
    if len(arguments) not in (6, 7):
        raise ValueError("a tensor with another number of arguments")
    storage, offset, shape, strides = arguments[:4]
    dimensions = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 32
    if not isinstance(storage, Storage) or not dimensions or not all(map(_is_count, (offset, *shape, *strides))):
        raise ValueError("a tensor that is described wrongly")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if prod(filter(None, shape)) >= 2**48 or max(strides, default=0) >= 2**48:
        raise ValueError("a tensor too large for any computer")
    if prod(shape) == 0:
        return StoredTensor(storage, 0, shape, (0,) * len(shape))
    if last >= storage.size:
        raise ValueError(f"a tensor that reaches beyond its storage data/{storage.key}")
    return StoredTensor(storage, offset, shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    """`torch._utils._rebuild_parameter` (data, requires_grad, hooks[, state])."""
    if len(arguments) not in (3, 4) or not isinstance(arguments[0], StoredTensor):
        raise ValueError("a parameter that is described wrongly")
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if not arguments:
        return {}
    pairs = arguments[0] if len(arguments) == 1 else None
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("an ordered dictionary that is described wrongly")
    return _pairs([part for pair in pairs for part in pair])


_CALLS = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "collections.OrderedDict": _ordered_dict,
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
