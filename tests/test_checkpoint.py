"""Checkpoints: donated states, what is kept, what a killed save leaves, and loading the student alone."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroseg_jax.checkpoint import Checkpoints, load_student
from zeroseg_jax.config import to_json
from zeroseg_jax.errors import InputError

STATE = {
    "params": {"layers": {0: {"kernel": np.arange(4096.0, dtype=np.float32).reshape(64, 64)}}},
    "step": np.int32(0),
}


@functools.partial(jax.jit, donate_argnums=0)
def advance(state):
    return jax.tree.map(lambda x: x + 1, state)


def test_a_saved_state_is_not_touched_by_the_steps_that_follow(tmp_path):
    state = jax.tree.map(jnp.asarray, STATE)
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest is None
        for step in range(1, 7):
            state = advance(state)
            if step % 2 == 0:
                checkpoints.save(step, state, {"next_index": 10 * step})
        checkpoints.wait()
        assert checkpoints.latest == 6
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
        for step in (4, 6):
            restored, position = checkpoints.restore(step, abstract)
            assert position == {"next_index": 10 * step}
            jax.tree.map(lambda a, b, step=step: np.testing.assert_array_equal(a, b + step), restored, STATE)


def test_an_unfinished_save_does_not_count(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, jax.tree.map(jnp.asarray, STATE), {})
        checkpoints.wait()
    unfinished = tmp_path / "checkpoints/5.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "state").write_text("half")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 3
        checkpoints.save(5, jax.tree.map(jnp.asarray, STATE), {})
        checkpoints.wait()
        assert checkpoints.latest == 5


def test_a_workdir_without_a_checkpoint_is_told(tiny_config, tmp_path):
    with pytest.raises(InputError, match="holds no config"):
        load_student(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_json(tiny_config)))
    with pytest.raises(InputError, match="holds no checkpoints yet; let the run reach 5 steps"):
        load_student(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        load_student(tmp_path)
