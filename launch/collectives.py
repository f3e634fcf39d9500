"""Collectives of a compiled program, read from its HLO text, loops multiplied out."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}

_OPERATION = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_CALL = re.compile(r"(?:body|calls|to_apply|condition|branch_computations|called_computations)=\{?([%\w.\-, ]+)")


class Traffic(NamedTuple):
    """How often a kind of collective runs in one step, and the bytes of its results on one chip."""

    count: int
    bytes: int


def collectives(hlo: str) -> dict[str, Traffic]:
    """Kind -> traffic of one step, for the kinds that occur. A `while` of unknown length raises ValueError if there
    are collectives in it."""
    bodies, entry = _computations(hlo)
    found: dict[str, Traffic] = {}
    seen: set[str] = set()  # channels: fused asynchronous operations are printed more than once

    def walk(name: str, times: int | None) -> None:
        for line in bodies[name]:
            operation = _OPERATION.search(line)
            if operation and not _repeated(line, seen):
                if times is None:
                    raise ValueError(f"a collective runs in a loop of unknown length: {line.strip()[:200]}")
                shape, kind, start = operation.groups()
                before = found.get(kind, Traffic(0, 0))
                found[kind] = Traffic(before.count + times, before.bytes + times * _bytes(shape, kind, bool(start)))
            inner = times
            if " while(" in line:
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                inner = None if times is None or not trips else times * int(trips[1])
            for called in _CALL.findall(line):
                for callee in re.findall(r"[\w.\-]+", called):
                    if callee in bodies:
                        walk(callee, inner)

    walk(entry, 1)
    return found


def _repeated(line: str, seen: set[str]) -> bool:
    channel = re.search(r"channel_id=(\d+)", line)
    if channel is None:
        return False
    known = channel[1] in seen
    seen.add(channel[1])
    return known


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of each computation, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if header and not line.startswith((" ", "HloModule")):
            name = header[2]
            bodies[name] = []
            entry = name if header[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _bytes(shape: str, kind: str, start: bool) -> int:
    """Bytes of the arrays in `shape`. The `-start` of a gather or permute holds operands and results: the latter."""
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * BYTES.get(dtype, 4)
        for dtype, dims in re.findall(r"(pred|bf16|[suf]\d+)\[([\d,]*)\]", shape)
    ]
    if start and kind in ("all-gather", "collective-permute"):
        return max(sizes) if kind == "collective-permute" else sum(sizes[len(sizes) // 2 :])
    return sum(sizes)
