"""What traced and compiled programs do: FLOPs by their jaxpr, and bytes that devices send to each other by their text.

The compiler's own count of FLOPs takes the body of a loop once.
"""

import math
import re
from collections import Counter
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


def moved_bytes(text: str) -> dict[str, int]:
    """Bytes of the results of each kind of collective in a compiled program, each counted once, also in a loop."""
    moved: Counter[str] = Counter()
    channels = set()  # a fused asynchronous operation is printed more than once
    for line in text.splitlines():
        match = re.search(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(", line)
        if not match:
            continue
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        channel = re.search(r"channel_id=\d+", line)
        key = channel and (channel[0], str(shapes))
        if key and key in channels:
            continue
        channels.add(key)
        sizes = [BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in shapes]
        if match[3] and match[2] == "all-gather":  # operands and results
            sizes = sizes[len(sizes) // 2 :]
        moved[match[2]] += sum(sizes)
    return dict(moved)


def matmul_flops(jaxpr: Any) -> float:
    """FLOPs of all matrix products and convolutions, loops multiplied out.

    Of a `cond` the dearest branch counts; the body of a `while`, whose length is not known, counts once.
    """
    return sum(_flops(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _flops(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, out_axis = equation.invars[1].aval.shape, parameters["dimension_numbers"].rhs_spec[0]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / kernel[out_axis]
    if name == "cond":
        return max(matmul_flops(branch) for branch in parameters["branches"])
    inner = 0.0
    for value in parameters.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                inner += matmul_flops(part)
    if name == "shard_map":  # each device's part
        return inner * math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
    return inner * (parameters["length"] if name == "scan" else 1)
