"""Checkpoints of a training run: `WORKDIR/checkpoints/STEP`, written in the background by orbax.

The train state is a plain dict `{"params", "opt", "step"}` of arrays; the position of the data iterator goes beside it
as JSON. A checkpoint becomes visible only when it is complete, so a killed run leaves whole ones behind, and it is
always restored into a tree of shapes and shardings, so the mesh may differ from the one that saved it.
"""

from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from zeroseg_jax.config import default_config, flatten, read_config
from zeroseg_jax.distill.plan import make_student_config
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.student import Student


class Checkpoints:
    """The checkpoints of one workdir; the newest `keep` of them stay. Use it as a context manager."""

    def __init__(self, workdir: str | Path, keep: int = 1):
        self.folder = Path(workdir).resolve() / "checkpoints"
        training = ocp.training
        self._checkpointer = training.Checkpointer(
            self.folder,
            # which steps are saved is the training loop's to say
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        newest = self._checkpointer.latest
        return None if newest is None else int(newest.step)

    def save(self, step: int, state: Any, position: dict) -> None:
        """Copies `state` to the host and writes it in the background; `position` is JSON-able, one for all hosts."""
        self._checkpointer.save_async(step, state, custom_metadata={"position": position}, overwrite=True)

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict]:
        """The train state, placed as `abstract_state` (ShapeDtypeStructs) has it, and the data position."""
        state = self._checkpointer.load(step, abstract_state)
        metadata = self._checkpointer.metadata(step).custom_metadata
        assert isinstance(metadata, dict)
        return state, metadata["position"]

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        self._checkpointer.wait()


def load_student(workdir: str | Path, dtype: Any = None) -> tuple[Student, ConfigDict]:
    """The student of the newest checkpoint of `workdir`, on the first device, and the config it was trained with.

    The optimiser's state is not read. `dtype` is the dtype of the computation (None: float32).

    Raises:
        InputError: `workdir` holds no config.json, one that lacks keys, or no complete checkpoint.
    """
    config = read_config(workdir)
    folder = Path(workdir).resolve() / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"{workdir} holds no checkpoints yet; let the run reach {config.checkpoint_every} steps")
    needed = {key for key in flatten(default_config()) if key.startswith(("student.", "image_size", "teacher.path"))}
    if missing := sorted(needed - flatten(config).keys()):
        raise InputError(
            f"{Path(workdir) / 'config.json'} lacks {', '.join(missing)}; put the file back that the run wrote"
        )
    with ocp.training.Checkpointer(folder) as checkpointer:
        if checkpointer.latest is None:
            raise InputError(
                f"{workdir} holds no complete checkpoint; let the run reach {config.checkpoint_every} steps"
            )
        saved = checkpointer.metadata(checkpointer.latest).metadata
        embed_dim = saved["params"]["projection"]["fc2"]["bias"].shape[0]
        student_config = make_student_config(config, embed_dim)
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Student(student_config, rngs=nnx.Rngs(0), dtype=dtype)))
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        params = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), nnx.to_pure_dict(abstract)
        )
        skipped = {name: jax.tree.map(lambda _: ocp.PLACEHOLDER, tree) for name, tree in saved.items()}
        restored = checkpointer.load(checkpointer.latest, skipped | {"params": params})
    return nnx.merge(graphdef, restored["params"]), config
