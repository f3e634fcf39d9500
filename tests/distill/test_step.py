"""The training step: gradient accumulation, clipping, the weight decay mask, the schedule, random keys, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from zeroseg_jax import sharding
from zeroseg_jax.distill.step import decayed, learning_rate, make_optimizer, make_state, make_train_step
from zeroseg_jax.distill.teacher import load_teacher
from zeroseg_jax.models.student import Student
from zeroseg_jax.models.student_config import make_student_config


def one_step(config, optimizer, step: int = 0):
    """The state and metrics after one step of `optimizer` from the state of `config.seed`."""
    mesh = sharding.make_mesh(config.mesh)
    teacher = load_teacher(config)
    make = lambda: Student(make_student_config(config, 8), rngs=nnx.Rngs(0), dtype=jnp.dtype(config.dtype))  # noqa: E731
    graphdef, params = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), nnx.to_pure_dict(params))
    state = make_state(params, optimizer) | {"step": jnp.int32(step)}
    train_step = make_train_step(graphdef, optimizer, teacher, config, sharding.state_shardings(state, mesh))
    batch = {"image": jnp.asarray(rng.integers(0, 256, (4, 16, 16, 3)), jnp.uint8)}
    return train_step(state, batch, teacher.params)


@pytest.fixture
def plain_config(tiny_config):
    """Without Gumbel noise, and with a decoder less to compile."""
    tiny_config.student.gumbel = False
    tiny_config.loss.mae, tiny_config.student.decoder_depth = 0.0, 0
    tiny_config.views.grids = (2,)
    return tiny_config


@pytest.mark.end_to_end
def test_accumulation_gives_the_gradient_of_the_whole_batch(tiny_config):
    whole, metrics = one_step(tiny_config, optax.sgd(1.0))
    tiny_config.optimizer.accumulate = 2
    parts, part_metrics = one_step(tiny_config, optax.sgd(1.0))
    for name, value in metrics.items():
        np.testing.assert_allclose(part_metrics[name], value, rtol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), parts["params"], whole["params"])


@pytest.mark.end_to_end
def test_kernels_converted_before_the_step_change_no_gradient(plain_config, monkeypatch):
    plain_config.dtype = "bfloat16"
    state, _ = one_step(plain_config, optax.sgd(1.0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {jnp.dtype("float32")}
    monkeypatch.setattr("zeroseg_jax.distill.step.with_kernels_in", lambda dtype, params: params)
    expected, _ = one_step(plain_config, optax.sgd(1.0))  # each layer converts its own
    jax.tree.map(np.testing.assert_array_equal, state["params"], expected["params"])


@pytest.mark.end_to_end
def test_noise_depends_on_the_step_alone(plain_config):
    losses = [float(one_step(plain_config, optax.sgd(1.0), step)[1]["loss"]) for step in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.end_to_end
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(plain_config):
    _, exact = one_step(plain_config, optax.sgd(1.0))
    plain_config.dtype = "bfloat16"
    state, metrics = one_step(plain_config, optax.sgd(1.0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {jnp.dtype("float32")}
    assert float(metrics["loss"]) == pytest.approx(float(exact["loss"]), rel=0.05)
    assert float(metrics["loss"]) != float(exact["loss"])


@pytest.mark.end_to_end
def test_only_matrices_decay(tiny_config):
    config = make_student_config(tiny_config, 8)
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Student(config, rngs=nnx.Rngs(0)))))
    paths = jax.tree_util.tree_leaves_with_path(decayed(params))
    names = {True: set(), False: set()}
    for path, decays in paths:
        names[decays].add(path[-1].key)
    assert names == {True: {"kernel"}, False: {"bias", "scale", "class_token", "mask_token", "group_tokens"}}

    options = tiny_config.optimizer
    options.clip, options.weight_decay, options.lr, options.warmup_steps = 0.0, 0.5, 1.0, 0
    optimizer = make_optimizer(options, 10)
    ones = jax.tree.map(lambda a: jnp.ones(a.shape), params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, ones), optimizer.init(ones), ones)
    for (path, update), (_, decays) in zip(jax.tree_util.tree_leaves_with_path(updates), paths, strict=True):
        np.testing.assert_allclose(update, -0.5 if decays else 0.0, err_msg=str(path))


def test_the_schedule_warms_up_and_ends_at_zero(tiny_config):
    options = tiny_config.optimizer
    options.lr, options.warmup_steps = 1.0, 10
    rates = [float(learning_rate(options, 100)(step)) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11) and rates[10] == pytest.approx(1.0) and rates[100] == pytest.approx(0.0)
    assert rates[55] == pytest.approx(0.5)
    assert max(float(learning_rate(options, 4)(step)) for step in range(4)) == pytest.approx(1.0)
