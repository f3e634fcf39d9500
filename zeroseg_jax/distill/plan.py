"""What a config describes, before anything is made: the student, its train state on a mesh, and the step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from zeroseg_jax import sharding
from zeroseg_jax.distill.step import TrainState, make_optimizer, make_state, make_train_step
from zeroseg_jax.distill.teacher import Teacher
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.models.student_config import make_student_config
from zeroseg_jax.ops.flash_attention import best_attention


class Plan(NamedTuple):
    """A distillation run on a mesh. `train.py` carries it out, `launch/fit.py` compiles it for devices elsewhere."""

    student: StudentConfig
    """Sizes of the student."""
    graphdef: nnx.GraphDef
    """Of the student; `nnx.merge(graphdef, state["params"])` is the student."""
    initial_state: Callable[[], TrainState]
    """Makes the train state of a run from scratch."""
    state: TrainState
    """Its shapes and shardings, ShapeDtypeStructs."""
    train_step: jax.stages.Wrapped
    """`step.make_train_step`'s."""

    @property
    def shardings(self) -> TrainState:
        """Where the state lives."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)


def make_plan(config: ConfigDict, teacher: Teacher, mesh: Mesh) -> Plan:
    """Describes the run of `config`; raises InputError where the student's sizes do not fit each other."""
    sizes = make_student_config(config, teacher.embed_dim, teacher.sizes)
    optimizer = make_optimizer(config.optimizer, config.steps)

    def make() -> Student:
        dtype = jnp.dtype(config.dtype)
        return Student(sizes, attention=best_attention(dtype), rngs=nnx.Rngs(config.seed), dtype=dtype)

    def initial_state() -> TrainState:
        return make_state(nnx.to_pure_dict(nnx.state(make())), optimizer)

    graphdef = nnx.graphdef(nnx.eval_shape(make))
    shapes = jax.eval_shape(initial_state)
    shardings = sharding.state_shardings(shapes, mesh)
    state = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)
    return Plan(sizes, graphdef, initial_state, state, make_train_step(graphdef, optimizer, teacher, config, shardings))
