"""A function of a few images, run on all devices of a mesh: each device works on its own part of the batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from zeroseg_jax.sharding import AXES, BATCH_AXES, batch_parts, over_batch, sum_over_devices

Loss = Callable[[Any, Any], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
"""(parameters, batch) -> the mean loss of the batch, and the means of its terms."""


def on_each_device(function: Callable[[Any, Any], Any], mesh: Mesh, out_specs: Any = None) -> Callable:
    """`function(parameters, batch)` with the batch split over the devices; each device has all parameters.

    `out_specs` says how the results of the devices lie in the whole result, by default one after the other.
    """
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(P(), P(BATCH_AXES)),
        out_specs=P(BATCH_AXES) if out_specs is None else out_specs,
        axis_names=set(BATCH_AXES if mesh.shape["tensor"] > 1 else AXES),  # the compiler splits layers over "tensor"
        check_vma=False,  # with it, JAX would sum the gradients of every part over the devices
    )


def mean_gradient(loss: Loss, mesh: Mesh, shardings: Any, *, parts: int, dtype: Any) -> Callable[[Any, Any], Any]:
    """The gradient of `loss` for a batch that is split over the devices of `mesh`.

    Args:
        loss: of some images.
        shardings: NamedShardings of the parameters; the gradients get the same.
        parts: each device splits its images into so many parts and works on one after the other.
        dtype: of the sum over devices. It is made once a step, and returned as float32.

    Returns:
        A function (parameters, batch) -> (gradients, means of the terms), both float32 means over the whole batch.
    """
    specs = over_batch(shardings)
    share = 1 / (parts * batch_parts(mesh))

    def gradient(params: Any, batch: Any) -> tuple[Any, Any]:
        """What one part adds to the mean. The loss is scaled, not the gradients, which may have few digits."""

        def scaled(params: Any) -> tuple[Array, Any]:
            mean, terms = loss(params, batch)
            return share * mean, jax.tree.map(lambda term: share * term, terms)

        gradients, terms = jax.grad(scaled, has_aux=True)(params)
        return gradients, terms

    def accumulated(params: Any, batch: Any) -> tuple[Any, Any]:
        if parts == 1:
            return gradient(params, batch)

        def add(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient(params, part)), None

        split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], split))
        return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), split)[0]

    def of_device(params: Any, batch: Any) -> tuple[Any, Any]:
        gradients, terms = accumulated(params, batch)
        gradients = jax.tree.map(lambda x, spec: sum_over_devices(x, spec, mesh, dtype), gradients, specs)
        return gradients, jax.tree.map(lambda x: sum_over_devices(x, P(), mesh, jnp.float32), terms)

    return on_each_device(of_device, mesh, (specs, P()))
