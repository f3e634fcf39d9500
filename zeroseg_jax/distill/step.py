"""The jitted training step: one pure function from the train state and a batch to the next state and its metrics."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from zeroseg_jax.distill.losses import total_loss
from zeroseg_jax.distill.parallel import mean_gradient, on_each_device
from zeroseg_jax.distill.teacher import Teacher
from zeroseg_jax.models.layers import with_kernels_in
from zeroseg_jax.sharding import gathered

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
    patches = (config.image_size // config.student.patch_size) ** 2
    reduce_dtype = config.dtype if config.optimizer.reduce_dtype == "compute" else "float32"
    mesh = shardings["step"].mesh

    def loss_fn(params: Any, batch: Batch) -> tuple[Array, Metrics]:
        """The loss of some images, and each of its terms."""
        student = nnx.merge(graphdef, params)
        images = batch["image"].astype(jnp.float32) / 255
        output = student(images, noise=batch["noise"], gumbel_key=batch["gumbel"], reconstruct=config.loss.mae > 0)
        return total_loss(output, batch["teacher"].astype(jnp.float32), images, weights, teacher.boxes)

    embed = on_each_device(teacher.embed, mesh)
    gradient = mean_gradient(
        loss_fn, mesh, shardings["params"], parts=config.optimizer.accumulate, dtype=jnp.dtype(reduce_dtype)
    )

    def train_step(state: TrainState, batch: Batch, teacher_params: Any) -> tuple[TrainState, Metrics]:
        # ---- Targets and noise
        if "teacher" not in batch:
            batch = batch | {"teacher": embed(teacher_params, batch["image"])}
        batch = batch | noise(state["step"], len(batch["image"]))

        # ---- Loss and gradient. Kernels are converted once, not by each layer, which would keep them for the gradient
        params = with_kernels_in(config.dtype, state["params"])
        params = jax.lax.with_sharding_constraint(params, gathered(shardings["params"]))
        gradients, metrics = gradient(params, batch)
        gradients = jax.lax.with_sharding_constraint(gradients, shardings["params"])

        # ---- Update
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics |= {"grad_norm": optax.tree.norm(gradients), "param_norm": optax.tree.norm(params)}
        metrics |= {"lr": schedule(state["step"])}
        return {"params": params, "opt": opt, "step": state["step"] + 1}, metrics

    def noise(step: Array, images: int) -> Batch:
        """Random numbers for masking and assignment. Each image has a key, so the mesh does not change them."""
        mask_key, gumbel_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))
        return {
            "noise": jax.random.uniform(mask_key, (images, patches)),
            "gumbel": jax.random.split(gumbel_key, images),
        }

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
