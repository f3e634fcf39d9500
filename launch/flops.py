"""FLOPs of a traced function, from its jaxpr: the compiler's own count takes the body of a loop once."""

import math
from typing import Any


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
