"""The mesh of devices (of TPUs or GPUs), and a table that says how each parameter is split over it.

The models do not know the mesh. `TABLE` has the ends of the parameters' paths. The optimiser's moments have paths with
the same ends, so they are split as their parameters. Stacked transformer parameters have a leading layer axis, which is
never split.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from zeroseg_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""The axes that a batch is split over. Devices along "tensor" work on the same images."""

# End of a parameter's path -> logical name of each of its last axes. The first row that matches counts.
TABLE: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(query|key|value)/kernel", ("embed", "heads")),
    (r"(query|key|value)/bias", ("heads",)),
    (r"out/kernel", ("heads", "embed")),
    (r"fc1/kernel", ("embed", "mlp")),
    (r"fc1/bias", ("mlp",)),
    (r"fc2/kernel", ("mlp", "embed")),
    (r"token_embedding", ("vocab", "embed")),
    (r"kernel", ("embed", None)),  # patch embeddings and projections
    (r".*", ()),  # norms, other biases, tokens, positions, scalars: whole on every device
)

# Logical name -> mesh axis
RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def make_mesh(shape: Mapping[str, int] | ConfigDict) -> Mesh:
    """The device mesh ("data", "fsdp", "tensor"). An axis of -1 takes all devices that the other axes leave.

    Raises:
        InputError: the product of the axes is not the number of devices.
    """
    return jax.make_mesh(mesh_sizes(shape, jax.device_count()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(shape: Mapping[str, int] | ConfigDict, devices: int) -> tuple[int, ...]:
    """The size of each of `AXES` for a number of devices. Raises InputError as `make_mesh` does."""
    sizes = [shape[axis] for axis in AXES]
    known = int(np.prod([size for size in sizes if size != -1]))
    if (
        min(sizes) < -1
        or 0 in sizes
        or sizes.count(-1) > 1
        or devices % known
        or (-1 not in sizes and known != devices)
    ):
        listed = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise InputError(f"a mesh of {listed} does not fit {devices} devices; set one axis to -1, such as mesh.data=-1")
    return tuple(devices // known if size == -1 else size for size in sizes)


def logical_axes(path: str) -> tuple[str | None, ...]:
    """The table's row for a parameter path such as "encoder/blocks/mlp/fc1/kernel"."""
    return next(axes for pattern, axes in TABLE if re.search(rf"(^|/){pattern}$", path))


def spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """How the array at `path` is split. An axis that does not divide evenly is left whole."""
    axes = logical_axes(path)
    if len(axes) > len(shape):  # a scalar in the place of an array, such as a placeholder of the optimiser
        return P()
    names: list[str | None] = [None] * (len(shape) - len(axes))
    for logical, size in zip(axes, shape[len(names) :], strict=True):
        axis = RULES[logical] if logical else None
        names.append(axis if axis and size % mesh.shape[axis] == 0 else None)
    return P(*names)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """The NamedSharding of each array of `state`, which has parameters or a whole train state, perhaps abstract."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, state)


def gathered(shardings: Any) -> Any:
    """The same shardings without "fsdp". The step sees the parameters in this way.

    "fsdp" splits what is stored, the parameters and the optimiser's moments. The step gathers all parameters once.
    """
    return jax.tree.map(
        lambda sharding: NamedSharding(sharding.mesh, _only(sharding.spec, ("data", "tensor"))), shardings
    )


def over_batch(shardings: Any) -> Any:
    """The PartitionSpecs over `BATCH_AXES`. They say which part of a sum `sum_over_devices` leaves on a device."""
    return jax.tree.map(lambda sharding: _only(sharding.spec, BATCH_AXES), shardings)


def _only(spec: P, axes: tuple[str, ...]) -> P:
    return P(*(axis if axis in axes else None for axis in spec))


def sum_over_devices(x: Array, spec: P, mesh: Mesh | AbstractMesh, dtype: Any) -> Array:
    """The sum of `x` over the devices of `BATCH_AXES`, added in `dtype`. Each device keeps the part in `spec`.

    It is returned as float32. To be called in `jax.shard_map` over these axes; the sum of a matrix that "fsdp" splits
    goes to its parts at once.
    """
    axes = [axis for axis in BATCH_AXES if mesh.shape[axis] > 1]
    if not axes:  # a sum over one device would stay in the program, and `x` be rounded for nothing
        return x.astype(jnp.float32)
    total = x.astype(dtype)
    if "fsdp" in axes and "fsdp" in spec:
        axes.remove("fsdp")
        total = jax.lax.psum_scatter(total, "fsdp", scatter_dimension=spec.index("fsdp"), tiled=True)
    return (jax.lax.psum(total, tuple(axes)) if axes else total).astype(jnp.float32)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices of `BATCH_AXES`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts that a batch is split into. Devices along "tensor" work on the same part."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises InputError if a batch cannot be split evenly over the mesh."""
    parts = batch_parts(mesh)
    if batch_size % parts:
        raise InputError(
            f"a batch of {batch_size} images does not split over {parts} devices (mesh.data x mesh.fsdp);"
            f" {max(1, round(batch_size / parts)) * parts} would"
        )


def process_part(mesh: Mesh) -> tuple[int, int]:
    """The number of the part of every batch that this process reads, and the number of parts.

    Processes whose devices work on the same images, because "tensor" spreads over them, read the same part.

    Raises:
        InputError: the parts of two processes would overlap, but not be the same.
    """
    held: dict[int, set[int]] = {}
    for (data, fsdp, _), device in np.ndenumerate(mesh.devices):
        held.setdefault(device.process_index, set()).add(data * mesh.shape["fsdp"] + fsdp)
    parts = sorted({tuple(sorted(rows)) for rows in held.values()})
    if len({len(part) for part in parts}) > 1 or len(parts) * len(parts[0]) != batch_parts(mesh):
        raise InputError(
            f"mesh.tensor={mesh.shape['tensor']} splits images between processes of {jax.local_device_count()} devices;"
            " let one number divide the other"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch, which consists of the parts of all processes."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
