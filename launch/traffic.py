"""An estimate of the bytes that a compiled program moves between a chip and its main memory.

Every instruction (a fusion is one) reads its operands and writes its results, but for those that the compiler has
placed in a memory inside the chip. What is only cut out of an operand, or replaced in it, counts instead of the whole.
It knows nothing of the padding of tiles nor of what is moved twice inside an instruction, and leaves out what a
collective moves that runs behind other work: that waits for the network.
"""

import re

from hlo import Computation, Instruction, Program, called, sizes

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_CUTS = {"dynamic-slice", "slice", "gather"}


def main_memory_bytes(program: Program) -> int:
    """Bytes read and written in one step, loops multiplied out; the body of a loop of unknown length counts once."""
    total = 0
    for instruction, computation, times in program.run():
        if instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
            total += (times or 1) * (
                _read(instruction, computation, program) + _written(instruction, computation, program)
            )
    return total


def _read(instruction: Instruction, computation: Computation, program: Program) -> int:
    if instruction.opcode.removesuffix("-start") in _CUTS:
        return sizes(instruction.shape)[_made(instruction)] if _whole(computation, instruction.operands[0]) else 0
    if instruction.opcode == "dynamic-update-slice":
        return _whole(computation, instruction.operands[1])
    body = _fused(instruction, program)
    total = 0
    passed = {operand for _, operand in _passed(instruction)}
    for i, operand in enumerate(instruction.operands):
        whole = 0 if i in passed else _whole(computation, operand)
        total += whole if body is None or not whole else min(whole, _used(body, i, program))
    return total


def _written(instruction: Instruction, computation: Computation, program: Program) -> int:
    found = sizes(instruction.shape, main_memory=True)
    if instruction.opcode.endswith("-start"):
        return found[_made(instruction)]
    body = _fused(instruction, program)
    if body is None:
        return (
            _whole(computation, instruction.operands[1]) if instruction.opcode == "dynamic-update-slice" else sum(found)
        )
    root = list(body.values())[-1]
    roots = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for result, _ in _passed(instruction):
        found[result] = 0
    return sum(min(size, _replaced(each, body)) for size, each in zip(found, roots, strict=False))


def _passed(instruction: Instruction) -> list[tuple[int, int]]:
    """Results and operands that are the arrays of a collective, which goes on behind the arithmetic of a fusion."""
    if "calls=%async_collective_fusion" not in instruction.line:
        return []
    return [(int(i), int(j)) for i, j in re.findall(r"\{(\d+)\}: \((\d+),", instruction.line)]


def _replaced(root: Instruction, body: Computation) -> int:
    """Bytes that a fusion writes for one of its results: of one that is changed in place, what is put in."""
    while root.opcode == "bitcast":
        root = body[root.operands[0]]
    whole = root.operands[1] if root.opcode == "dynamic-update-slice" else root.name
    return sum(sizes(body[whole].shape))


def _fused(instruction: Instruction, program: Program) -> Computation | None:
    names = called(instruction) if instruction.opcode == "fusion" else []
    return program.computations[names[0]] if names else None


def _used(body: Computation, index: int, program: Program) -> int:
    """Bytes that a fused computation takes of its parameter `index`."""
    name = next(i.name for i in body.values() if i.opcode == "parameter" and f"parameter({index})" in i.line)
    return _taken(body, name, program)


def _taken(body: Computation, name: str, program: Program) -> int:
    whole = sum(sizes(body[name].shape))
    total = 0
    for user in body.values():
        if name not in user.operands:
            continue
        if user.opcode in _CUTS and user.operands[0] == name:
            total += sum(sizes(user.shape))
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # replaced in place
        elif user.opcode == "bitcast":
            total += _taken(body, user.name, program)
        elif (inner := _fused(user, program)) is not None:
            total += _used(inner, user.operands.index(name), program)
        else:
            return whole
    return min(whole, total)


def _whole(computation: Computation, name: str) -> int:
    """Bytes of an operand in main memory."""
    if name not in computation:
        return 0
    return sum(sizes(computation[name].shape, main_memory=True))


def _made(instruction: Instruction) -> int:
    """Which array of its shape is the result: a `-start` has its operands and flags there too."""
    return 1 if instruction.opcode in ("slice-start", "dynamic-slice-start") else 0
