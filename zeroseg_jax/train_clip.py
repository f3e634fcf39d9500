"""Trains a small CLIP on image-caption pairs. Its result is the demo's teacher, which `assets/` contains.

    python main.py --config=configs/teacher_demo.py [--config.data.source=folder --config.data.root=DIR]

The loss is CLIP's contrastive loss (Radford et al. 2021, section 2.3), but equal captions of a batch do not repel each
other. The first `config.name_steps` steps use crops of a single thing, whose caption is its name. Without these steps a
small tower needs a long time to learn outlines and patterns. The result is the Hugging Face folder WORKDIR/clip.
"""

import contextlib
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from zeroseg_jax.checkpoint import Checkpoints
from zeroseg_jax.config_ranges import check_whole_patches
from zeroseg_jax.data.augment import Augmentation
from zeroseg_jax.data.pipeline import train_iterator
from zeroseg_jax.data.sources.captions import open_pairs
from zeroseg_jax.distill.step import make_optimizer
from zeroseg_jax.errors import NotFiniteError
from zeroseg_jax.evaluate.crop_classification import classify_crops
from zeroseg_jax.log import RunLog
from zeroseg_jax.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.models.tokenizer import build_word_tokenizer
from zeroseg_jax.ops.normalise import unit
from zeroseg_jax.preemption import Preemption
from zeroseg_jax.segment.io import write_defaults
from zeroseg_jax.storage import AnyPath, to_path, write_text
from zeroseg_jax.workdir import check_workdir, open_workdir


def train_teacher(config: ConfigDict, workdir: AnyPath) -> dict[str, Any]:
    """Trains the teacher and returns its results. If WORKDIR has a checkpoint, the training resumes from it.

    Writes the model to WORKDIR/clip and the results to WORKDIR/results.json.

    Raises:
        InputError: a config, path, data set or workdir that cannot be used.
        NotFiniteError: the loss is no longer finite.
        Preempted: SIGTERM or Ctrl-C stopped the training after a step, which is saved.
    """
    workdir = to_path(workdir)
    check_workdir(config, workdir)

    # 1. The pairs. The first steps use only those that show a single thing.
    pairs = open_pairs(config.data, config.image_size)
    named = pairs.named()
    name_steps = config.name_steps if len(named) else 0

    # 2. The tokenizer and the model.
    tokenizer = build_word_tokenizer(
        pairs.texts + named.texts, vocabulary=config.text.vocabulary, context=config.text.context
    )
    model_config = clip_config(config, len(tokenizer), tokenizer)
    make_model = functools.partial(CLIP, model_config, positions="sincos", remat="dots")
    params = nnx.to_pure_dict(jax.jit(lambda: nnx.state(make_model(rngs=nnx.Rngs(config.seed))))())
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))

    def merge(params: Any) -> CLIP:
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    encoder = ClipEncoder(merge(params), tokenizer)
    named_tokens, all_tokens = encoder.tokenize(named.texts), encoder.tokenize(pairs.texts)

    # 3. The step.
    optimizer = make_optimizer(config.optimizer, config.steps)

    def loss_fn(params: Any, images: jax.Array, texts: jax.Array, step: jax.Array) -> jax.Array:
        model = merge(params)
        pixels = encoder.normalise(images.astype(jnp.float32) / 255)
        scale = jnp.minimum(jnp.exp(model.logit_scale[...]), config.max_logit_scale)
        scale = jnp.where(step < config.fixed_scale_steps, 10.0, scale)
        return contrastive_loss(unit(model.vision(pixels)), unit(model.text(texts)), texts, scale)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: dict[str, Any], images: jax.Array, texts: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        loss, gradient = jax.value_and_grad(loss_fn)(state["params"], images, texts, state["step"])
        updates, opt = optimizer.update(gradient, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt, "step": state["step"] + 1}, loss

    # 4. The loop.
    state = {"params": params, "opt": jax.jit(optimizer.init)(params), "step": jnp.zeros((), jnp.int32)}
    augmentation = Augmentation.from_config(config.data, config.image_size, config.seed)
    make_batches = functools.partial(
        train_iterator,
        batch_size=config.batch_size,
        augmentation=augmentation,
        workers=config.data.workers,
        max_broken_share=config.data.max_broken_share,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(open_workdir(config, workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir))
        preemption = stack.enter_context(Preemption())
        first, position = checkpoints.latest or 0, None
        if first:
            place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), state)
            state, position = checkpoints.restore(first, shapes)
            logging.info("resumed at step %d of %d", first, config.steps)
        naming = first < name_steps  # whether the step uses only `named`
        batches = stack.enter_context(make_batches(named if naming else pairs))
        if position and position["naming"] == naming:
            batches.set_state(position["batches"])
        log = stack.enter_context(RunLog(workdir, start=first, steps=config.steps, images_per_step=config.batch_size))
        for step in range(first + 1, config.steps + 1):
            if naming and step > name_steps:
                batches.close()
                naming, batches = False, stack.enter_context(make_batches(pairs))
            batch = next(batches)
            tokens = named_tokens if naming else all_tokens
            state, loss = train_step(state, batch["image"], tokens[batch["index"]])
            stop = preemption.after(step)
            saving = step % config.checkpoint_every == 0 or step == config.steps or stop
            if step % config.log_every == 0 or saving:
                if not np.isfinite(loss):
                    raise NotFiniteError(f"the loss of step {step} is {loss}; lower optimizer.lr, or look at the data")
                log.write(step, {"loss": float(loss), "logit_scale": float(jnp.exp(state["params"]["logit_scale"]))})
            if saving:
                checkpoints.save(step, state, {"naming": naming, "batches": batches.get_state()})
                encoder = write_clip(ClipEncoder(merge(state["params"]), tokenizer), config, workdir / "clip")
            if stop:
                checkpoints.wait()
                raise preemption.stopped(f"after step {step} of {config.steps}, which is saved")
        checkpoints.wait()
        if first >= config.steps:  # the loop above did not run
            encoder = write_clip(ClipEncoder(merge(state["params"]), tokenizer), config, workdir / "clip")

        # 5. The results of the final weights.
        results = classify_crops(encoder, config) | {"settings": json.loads(config.to_json())}
        write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def write_clip(encoder: ClipEncoder, config: ConfigDict, folder: AnyPath) -> ClipEncoder:
    """Writes the teacher in Hugging Face form and returns it."""
    encoder.save(folder, dtype="float16")
    write_defaults(folder, {"templates": list(config.templates), "image_size": config.segment_size})
    return encoder


def clip_config(config: ConfigDict, vocabulary: int, tokenizer: Any) -> CLIPConfig:
    """The sizes of the small CLIP. Raises InputError if they do not fit each other."""
    check_whole_patches("image_size", config.image_size, "vision.patch_size", config.vision.patch_size)
    vision = VisionConfig(image_size=config.image_size, mlp_width=4 * config.vision.width, **config.vision)
    sizes = {name: config.text[name] for name in ("context", "width", "depth", "heads")}
    ids = dict(start_id=tokenizer.bos_token_id, end_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id)
    text = TextConfig(vocabulary=vocabulary, mlp_width=4 * config.text.width, **sizes, **ids)
    return CLIPConfig(vision, text, embed_dim=config.embed_dim, logit_scale=float(np.log(10.0)))


def contrastive_loss(images: jax.Array, texts: jax.Array, tokens: jax.Array, scale: jax.Array) -> jax.Array:
    """CLIP's symmetric cross entropy, a float32 scalar.

    `images` and `texts` (B, D) have unit length, and pair i is row i of both. `tokens` (B, T) are the captions. A
    caption that equals the caption of another pair also fits its image, so the sums leave it out.
    """
    logits = scale * images @ texts.T
    same_pair = jnp.eye(len(logits), dtype=bool)
    equal = (tokens[:, None] == tokens[None]).all(-1)
    logits = jnp.where(equal & ~same_pair, -jnp.inf, logits)
    return -(jax.nn.log_softmax(logits, 1) + jax.nn.log_softmax(logits, 0)).diagonal().mean() / 2
