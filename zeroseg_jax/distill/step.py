"""The jitted training step: one pure function from the train state and a batch to the next state and its metrics."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from ml_collections import ConfigDict

from zeroseg_jax.distill.losses import total_loss
from zeroseg_jax.distill.teacher import Teacher
from zeroseg_jax.models.layers import with_kernels_in
from zeroseg_jax.sharding import AXES, BATCH_AXES, batch_parts, gathered, over_batch, sum_over_devices

TrainState = dict[str, Any]
"""`params` and `opt` (the optimiser's state) as trees of arrays, `step` an int32 scalar: the number of steps taken."""
Batch = dict[str, Array]
"""`image` uint8 (B, S, S, 3), and `teacher` float (B, V, D) where the teacher's embeddings are cached."""
Metrics = dict[str, Array]


def learning_rate(options: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up over `options.warmup_steps` (at most half of `steps`), then a cosine to zero at `steps`."""
    warmup = min(options.warmup_steps, steps // 2)
    return optax.warmup_cosine_decay_schedule(options.lr / (warmup + 1), options.lr, warmup, steps)


def decayed(params: Any) -> Any:
    """The weight decay mask: matrices only; no bias, norm, token or position (as MAE and CLIP have it)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(options: ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW behind clipping by the global norm, as `config.optimizer` says."""
    adamw = optax.adamw(
        learning_rate(options, steps),
        b1=options.betas[0],
        b2=options.betas[1],
        weight_decay=options.weight_decay,
        mask=decayed,
    )
    clip = optax.clip_by_global_norm(options.clip) if options.clip else optax.identity()
    return optax.chain(clip, adamw, _slow_encoder(options.encoder_lr))


def _slow_encoder(share: float) -> optax.GradientTransformation:
    """Makes the encoder's updates a `share` of the others', for an encoder that starts from trained weights."""

    def slow(path: Any, update: Array) -> Array:
        return update * share if path[0].key == "encoder" else update

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(slow, updates))


def make_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The train state before the first step."""
    return {"params": params, "opt": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    teacher: Teacher,
    config: ConfigDict,
    shardings: TrainState,
) -> jax.stages.Wrapped:
    """The jitted `(state, batch, teacher.params) -> (state, metrics)`; the given state is donated.

    `shardings` is a tree like the state and says where its next value lives.

    Masking noise and Gumbel noise come from the seed and `state["step"]` alone, so a resumed run repeats them.
    Metrics are float32 scalars: `loss`, each loss term, `grad_norm` (before clipping), `param_norm` (of the new state,
    so that finite metrics mean a finite state) and `lr`.
    """
    schedule, weights = learning_rate(config.optimizer, config.steps), config.loss.to_dict()
    patches, parts = (config.image_size // config.student.patch_size) ** 2, config.optimizer.accumulate
    reduce_dtype = jnp.dtype(config.dtype if config.optimizer.reduce_dtype == "compute" else "float32")
    mesh, specs = shardings["step"].mesh, over_batch(shardings["params"])
    share = 1 / (parts * batch_parts(mesh))

    def loss_fn(params: Any, batch: Batch) -> tuple[Array, Metrics]:
        """Its share of the loss of the whole batch, and of each term."""
        student = nnx.merge(graphdef, params)
        images = batch["image"].astype(jnp.float32) / 255
        output = student(images, noise=batch["noise"], gumbel_key=batch["gumbel"], reconstruct=config.loss.mae > 0)
        loss, terms = total_loss(output, batch["teacher"].astype(jnp.float32), images, weights, teacher.boxes)
        return share * loss, jax.tree.map(lambda term: share * term, terms)

    def gradient(params: Any, batch: Batch) -> tuple[Any, Metrics]:
        (_, terms), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        return gradients, terms

    def accumulated(params: Any, batch: Batch) -> tuple[Any, Metrics]:
        """The sum over `accumulate` parts of a device's images, one after the other."""
        if parts == 1:
            return gradient(params, batch)

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            # added by programs of their own: in those that make the gradients, sums take longer to compile
            return jax.tree.map(jnp.add, total, jax.lax.optimization_barrier(gradient(params, part))), None

        split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], split))
        return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), split)[0]

    def of_device(params: Any, batch: Batch, teacher_params: Any) -> tuple[Any, Metrics]:
        """What one device does with its images. Gradients are summed over devices once a step, in `reduce_dtype`."""
        if "teacher" not in batch:
            batch = batch | {"teacher": teacher.embed(teacher_params, batch["image"])}
        gradients, terms = accumulated(params, batch)
        gradients = jax.tree.map(lambda x, spec: sum_over_devices(x, spec, mesh, reduce_dtype), gradients, specs)
        return gradients, jax.tree.map(lambda x: sum_over_devices(x, P(), mesh, jnp.float32), terms)

    over_devices = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(P(), P(BATCH_AXES), P()),
        out_specs=(specs, P()),
        axis_names=set(BATCH_AXES if mesh.shape["tensor"] > 1 else AXES),  # "tensor" is left to the compiler
        check_vma=False,  # or JAX would sum the gradients of every part over the devices
    )

    def train_step(state: TrainState, batch: Batch, teacher_params: Any) -> tuple[TrainState, Metrics]:
        noise_key, gumbel_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state["step"]))
        images = len(batch["image"])
        # a key for each image, so that the noise depends neither on the mesh nor on `accumulate`
        batch = batch | {"gumbel": jax.random.split(gumbel_key, images)}
        batch |= {"noise": jax.random.uniform(noise_key, (images, patches))}
        # converted once, and not by each layer, which would keep them for the backward pass as well
        params = with_kernels_in(config.dtype, state["params"])
        params = jax.lax.with_sharding_constraint(params, gathered(shardings["params"]))
        gradients, metrics = over_devices(params, batch, teacher_params)
        gradients = jax.lax.with_sharding_constraint(gradients, shardings["params"])
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        norms = {"grad_norm": optax.tree.norm(gradients), "param_norm": optax.tree.norm(params)}
        metrics |= norms | {"lr": schedule(state["step"])}
        return {"params": params, "opt": opt, "step": state["step"] + 1}, metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
