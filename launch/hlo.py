"""A compiled program, read from its HLO text: what runs, and how often."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_ARRAY = re.compile(r"(pred|bf16|f8\w*|[suf]\d+)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(")
_CALLED = re.compile(
    r"(?:body|calls|to_apply|branch_computations|called_computations|true_computation|false_computation)"
    r"=(\{[^}]*\}|%?[\w.\-]+)"
)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    line: str


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """The computations by name; `entry` is where it begins."""

    computations: dict[str, Computation]
    entry: str

    def run(self, into_fusions: bool = False) -> Iterator[tuple[Instruction, Computation, int | None]]:
        """Each instruction with the computation that it is in and how often it runs; None: it is not known.

        `into_fusions` also lists what is inside fused computations, and what reductions apply to each element.
        """

        def walk(name: str, times: int | None) -> Iterator[tuple[Instruction, Computation, int | None]]:
            computation = self.computations[name]
            for instruction in computation.values():
                yield instruction, computation, times
                inner = times
                if instruction.opcode == "while":
                    trips = self.trips(instruction, computation)
                    inner = None if times is None or trips is None else times * trips
                elif instruction.opcode not in ("call", "conditional") and not into_fusions:
                    continue
                for callee in called(instruction):
                    if callee in self.computations:
                        yield from walk(callee, inner)

        return walk(self.entry, 1)

    def trips(self, loop: Instruction, computation: Computation) -> int | None:
        """How often the body of a `while` runs: as it is noted, or else as a counter that goes up by one says."""
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.line):
            return int(noted[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.line)
        body = self.computations[condition[1]] if condition else {}
        root = list(body.values())[-1] if body else loop
        if root.opcode != "compare" or "direction=LT" not in root.line:
            return None
        counter, end = (body[name] for name in root.operands)
        index = re.search(r"index=(\d+)", counter.line)
        last = _constant(end, body)
        start = computation.get(loop.operands[0])
        if last is None or index is None or start is None or start.opcode != "tuple":
            return None
        first = _constant(computation[start.operands[int(index[1])]], computation)
        return None if first is None else last - first


def called(instruction: Instruction) -> list[str]:
    """The names of the computations that an instruction calls, a loop's condition left out."""
    return [name for group in _CALLED.findall(instruction.line) for name in re.findall(r"[\w.\-]+", group)]


def _constant(instruction: Instruction, computation: Computation) -> int | None:
    while instruction.opcode in ("copy", "bitcast") and instruction.operands[0] in computation:
        instruction = computation[instruction.operands[0]]
    found = re.search(r"\bconstant\((-?\d+)\)", instruction.line)
    return int(found[1]) if found else None


def parse(text: str) -> Program:
    """Reads what `compiled.as_text()` of JAX gives."""
    computations: dict[str, Computation] = {}
    entry, current = "", Computation()
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if header and not line.startswith((" ", "HloModule")):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            name, shape, opcode = found.groups()
            current[name] = Instruction(name, shape, opcode, _operands(line, found.end()), line)
    return Program(computations, entry)


def _operands(line: str, start: int) -> tuple[str, ...]:
    """The names between the parenthesis that opens before `start` and its partner."""
    depth = 1
    for end in range(start, len(line)):
        depth += (line[end] == "(") - (line[end] == ")")
        if not depth:
            return tuple(re.findall(r"%([\w.\-]+)", line[start:end]))
    return ()


def sizes(shape: str, main_memory: bool = False) -> list[int]:
    """Bytes of each array of a shape; `main_memory` counts none of those that are in a memory inside the chip."""
    return [
        0 if main_memory and "S(" in layout else math.prod(int(n) for n in dims.split(",") if n) * _BYTES.get(dtype, 4)
        for dtype, dims, layout in _ARRAY.findall(shape)
    ]
