"""Collectives of a compiled program: how often each kind runs in one step, and what it moves."""

import re
from typing import NamedTuple

from hlo import Instruction, Program, sizes

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """How often a kind of collective runs in one step, and the bytes of its results on one chip."""

    times: int
    bytes: int


def collectives(program: Program) -> dict[str, Collective]:
    """By kind, for the kinds that occur. A `while` of unknown length raises ValueError if there are any in it."""
    found: dict[str, Collective] = {}
    seen: set[tuple[str, str]] = set()  # fused asynchronous operations are printed more than once
    for instruction, _, times in program.run(into_fusions=True):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS or _repeated(instruction, seen):
            continue
        if times is None:
            raise ValueError(f"a collective runs in a loop of unknown length: {instruction.line.strip()[:200]}")
        before = found.get(kind, Collective(0, 0))
        found[kind] = Collective(before.times + times, before.bytes + times * _bytes(instruction))
    return found


def _repeated(instruction: Instruction, seen: set[tuple[str, str]]) -> bool:
    """Whether one with its channel and shapes has been seen; all sums of a `shard_map` have the same channel."""
    channel = re.search(r"channel_id=(\d+)", instruction.line)
    if channel is None:
        return False
    key = channel[1], re.sub(r"\{[^}]*\}", "", instruction.shape)
    known = key in seen
    seen.add(key)
    return known


def _bytes(instruction: Instruction) -> int:
    """Bytes of the results. The `-start` of a gather or permute holds operands and results: the latter."""
    found = sizes(instruction.shape)
    if instruction.opcode == "all-gather-start":
        return sum(found[len(found) // 2 :])
    return max(found) if instruction.opcode == "collective-permute-start" else sum(found)
