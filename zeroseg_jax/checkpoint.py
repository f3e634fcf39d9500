"""Checkpoints of a training run: `WORKDIR/checkpoints/STEP`. Orbax writes them in the background.

The train state is a dict `{"params", "opt", "step"}` of arrays. The position of the data iterator is saved with it, as
JSON. A checkpoint gets its name only when it is complete, so a killed run leaves no half-written one. The mesh of a
resumed run may differ from the mesh that saved the checkpoint.

A checkpoint has the SHA-256 of its files in `SHA256SUMS`. They are compared whenever the checkpoint is read. A damaged
checkpoint is not used. The newest sound one takes its place, and the log says so.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from zeroseg_jax.checksums import read_sums, sha256, sums_of, write_sums
from zeroseg_jax.config import default_config, flatten, read_config, read_json_of_run
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.models.student_config import make_student_config, read_student_config
from zeroseg_jax.storage import AnyPath, is_remote, to_path, walk, write_text

STUDENT = "student.json"
"""The file in a workdir with the sizes of the run's student."""
SUMS, METADATA, COMMITTED = "SHA256SUMS", "_CHECKPOINT_METADATA", "commit_success.txt"
"""Files in each checkpoint: our checksums, orbax's description (with the position), and its mark of completion."""


class Checkpoints:
    """A context manager for the checkpoints of a training run. The newest `keep` checkpoints stay.

    At the start, two kinds of folders are renamed:
    - Damaged checkpoints that are newer than the newest sound one become `damaged-STEP`.
    - Folders that have the name of a step but are not checkpoints become `foreign-STEP`.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """

    def __init__(self, workdir: str | AnyPath, keep: int = 1):
        self.folder = checkpoint_folder(workdir)
        self.latest = self._settle()
        """The step of the newest sound checkpoint."""
        self._saving: int | None = None
        self._description: dict[str, Any] = {}
        training, context = ocp.training, ocp.Context()
        # A function, because orbax copies its options. It would copy a bound method with this whole object.
        context.async_options.post_finalization_callback = lambda: self._add_sums()
        self._checkpointer = training.Checkpointer(
            self.folder,
            context=context,
            # The training loop decides which steps are saved.
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self._checkpointer.close()

    def save(self, step: int, state: Any, position: dict) -> None:
        """Copies `state` to the host and writes it in the background.

        `position` is the position of the data iterator, as JSON. It is the same on all hosts.
        """
        self._checkpointer.wait()  # the save before this one still reads `_saving`
        self._saving, self._description = step, json.loads(json.dumps({"position": position}))
        self._checkpointer.save_async(step, state, custom_metadata={"position": position}, overwrite=True)
        self.latest = step

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict]:
        """The train state and the data position.

        `abstract_state` has the shapes, dtypes and shardings of the state, as ShapeDtypeStructs.

        Raises:
            InputError: the checkpoint has other arrays, or it has no checksums and cannot be read.
        """
        with _one_sentence(self.folder / str(step)):
            state = self._checkpointer.load(step, abstract_state)
            metadata = self._checkpointer.metadata(step).custom_metadata
            assert isinstance(metadata, dict)
            return state, metadata["position"]

    def wait(self) -> None:
        """Waits until everything that was saved is on disk."""
        self._checkpointer.wait()

    def _add_sums(self) -> None:
        """Orbax calls this in process 0 when all processes have written, before the checkpoint gets its name."""
        # Nothing can be renamed in a bucket, so orbax writes into the final folder there.
        final = self.folder / str(self._saving)
        unfinished = next(iter(self.folder.glob(f"{final.name}.orbax-checkpoint-tmp*")), final)
        _wait_for_description(unfinished / METADATA, self._description)
        write_sums(unfinished / SUMS, sums_of(unfinished, _files(unfinished), _digest))

    def _settle(self) -> int | None:
        """Renames what is not a sound checkpoint, in process 0, and returns the newest sound step."""
        newest, reason = -1, ""
        if jax.process_index() == 0:
            try:
                _set_foreign_aside(self.folder)
                newest = next(sound_steps(self.folder), -1)
                for step in saved_steps(self.folder):
                    if step > newest >= 0:
                        _set_aside(self.folder / str(step), "damaged")
            except InputError as error:
                newest, reason = -2, str(error)
        if jax.process_count() > 1:
            newest = int(multihost_utils.broadcast_one_to_all(np.int32(newest)))
        if newest == -2:
            raise InputError(reason or f"the checkpoints in {self.folder} are damaged; process 0 names the damage")
        return None if newest < 0 else newest


def checkpoint_folder(workdir: str | AnyPath) -> AnyPath:
    """The absolute path of `WORKDIR/checkpoints`. Raises InputError if it is a file."""
    path = to_path(workdir)
    folder = (path if is_remote(path) else path.resolve()) / "checkpoints"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not the folder of a run's checkpoints; remove it or choose a workdir")
    return folder


def sound_steps(folder: AnyPath) -> Iterator[int]:
    """The steps of the sound checkpoints in `folder`, newest first. The log names the damaged checkpoints.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    damaged, any_sound = {}, False
    for step in saved_steps(folder):
        if damage := find_damage(folder / str(step)):
            damaged[step] = damage
            logging.error("the checkpoint of step %d in %s is damaged, so it is not used: %s", step, folder, damage)
            continue
        if damaged and not any_sound:
            logging.error("step %d is the newest sound checkpoint in %s; it is used instead", step, folder)
        any_sound = True
        yield step
    if damaged and not any_sound:
        reasons = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
        raise InputError(
            f"no checkpoint in {folder} is sound ({reasons}); put a copy in its place, or remove {folder} to train anew"
        )


def find_damage(checkpoint: AnyPath) -> str:
    """Says how a checkpoint differs from its checksums. "" if it does not.

    Earlier versions wrote no checksums. Such a checkpoint counts as sound, and the log says that it is unchecked.
    """
    if not (checkpoint / COMMITTED).is_file():
        return f"{COMMITTED} is missing"
    if not (checkpoint / SUMS).is_file():
        logging.warning("%s holds no %s, so its files are read unchecked", checkpoint, SUMS)
        return ""
    try:
        expected, names = read_sums(checkpoint / SUMS), _files(checkpoint)
        if missing := expected.keys() - names:
            return f"{min(missing)} is missing"
        if unlisted := names - expected.keys():
            return f"{min(unlisted)} is not in its list of files"
        actual = sums_of(checkpoint, names, _digest)
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    different = sorted(name for name in names if actual[name] != expected[name])
    return f"the checksum of {different[0]} differs" if different else ""


def _files(checkpoint: AnyPath) -> set[str]:
    """The files with checksums. The mark of completion has none, because it is made after them."""
    return set(walk(checkpoint)) - {SUMS, COMMITTED}


def _digest(path: AnyPath) -> str:
    """The SHA-256 of a file. In orbax's description the time is left out, because orbax adds it after the checksums."""
    if path.name != METADATA:
        return sha256(path)
    try:
        description = json.loads(path.read_bytes())
        committed = description.pop("commit_timestamp_nsecs", None)
    except (ValueError, AttributeError):  # damaged: not JSON, or not an object
        return sha256(path)
    if not isinstance(committed, int | None):
        return sha256(path)
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _wait_for_description(path: AnyPath, expected: dict[str, Any], seconds: float = 60) -> None:
    """Waits until orbax's description has `expected`. A thread of orbax writes it, perhaps later than this call."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, ValueError):  # it is not there yet, or half written
            if json.loads(path.read_bytes()).get("custom_metadata") == expected:
                return
        if time.monotonic() > end:
            raise RuntimeError(f"orbax did not write {path} within {seconds:g} seconds, so the checkpoint is not saved")
        time.sleep(0.01)


def saved_steps(folder: AnyPath) -> list[int]:
    """The steps whose checkpoints are in `folder`, sound or damaged, newest first."""
    folders = [path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir() and _has_files(path)]
    return sorted((int(path.name) for path in folders if str(int(path.name)) == path.name), reverse=True)


def _has_files(folder: AnyPath) -> bool:
    """Whether `folder` is a checkpoint, or what is left of one."""
    return any((folder / name).exists() for name in (METADATA, SUMS, COMMITTED, "state"))


def _set_foreign_aside(folder: AnyPath) -> None:
    """Renames foreign folders. Orbax takes every folder whose name is a number for a checkpoint."""
    for path in list(folder.glob("*")):
        if path.name.isdecimal() and not (path.is_dir() and _has_files(path)):
            _set_aside(path, "foreign")


def _set_aside(path: AnyPath, why: str) -> None:
    other, count = path.with_name(f"{why}-{path.name}"), 1
    while other.exists():
        other, count = path.with_name(f"{why}-{path.name}-{count}"), count + 1
    path.rename(other)
    logging.warning("%s is set aside as %s; remove it when you do not need it", path, other.name)


@contextlib.contextmanager
def _one_sentence(checkpoint: AnyPath) -> Iterator[None]:
    """Turns the exceptions of orbax, which have many types, into InputError. Errors of the device are not changed."""
    try:
        yield
    except (InputError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if (checkpoint / SUMS).is_file():  # its files are as they were saved, so the reader expects something else
            raise InputError(
                f"the checkpoint {checkpoint} does not fit its config ({said}); use the version of zeroseg_jax that"
                " saved it, or choose another workdir"
            ) from error
        raise InputError(
            f"the checkpoint {checkpoint} is damaged ({said}); remove it to use the one before it"
        ) from error


def write_student(workdir: AnyPath, student: StudentConfig) -> None:
    """Writes the sizes of a run's student to `student.json` in the workdir. Only process 0 writes."""
    if jax.process_index() == 0:
        write_text(workdir / STUDENT, json.dumps(dataclasses.asdict(student), indent=2) + "\n")


def load_student(workdir: str | AnyPath, dtype: Any = None) -> tuple[Student, ConfigDict]:
    """The student of the newest sound checkpoint of `workdir`, on the first device, and the config of its run.

    The optimiser's state is not read. `dtype` is the dtype of the computation. None means float32.

    Raises:
        InputError: `workdir` has no config.json or no sound checkpoint, config.json lacks keys, or student.json is
            damaged.
    """
    config = read_config(workdir)
    folder = checkpoint_folder(workdir)
    if not folder.is_dir():
        raise InputError(f"{workdir} holds no checkpoints yet; let the run reach {config.checkpoint_every} steps")
    step = next(sound_steps(folder), None)
    if step is None:
        raise InputError(f"{workdir} holds no complete checkpoint; let the run reach {config.checkpoint_every} steps")
    with _one_sentence(folder / str(step)):
        saved = ocp.metadata(folder / str(step)).metadata
        sizes = _student_sizes(to_path(workdir), config, saved)
        return _read_student(folder / str(step), saved, sizes, dtype), config


def _student_sizes(workdir: AnyPath, config: ConfigDict, saved: Any) -> StudentConfig:
    """The sizes of the student, from student.json. Older runs do not have it: config and checkpoint give the sizes."""
    path = workdir / STUDENT
    if path.is_file():
        return read_student_config(read_json_of_run(path), str(path), "put the file back that the run wrote")
    needed = {key for key in flatten(default_config()) if key.startswith(("student.", "image_size", "teacher.path"))}
    needed.discard("student.pool_depth")  # older runs do not have it; see `StudentConfig.from_saved`
    if missing := sorted(needed - flatten(config).keys()):
        raise InputError(f"{workdir / 'config.json'} lacks {', '.join(missing)}; put the file back that the run wrote")
    return make_student_config(config, saved["params"]["projection"]["fc2"]["bias"].shape[0])


def _read_student(checkpoint: AnyPath, saved: Any, sizes: StudentConfig, dtype: Any) -> Student:
    """Reads only the parameters. `saved` is orbax's description of all arrays in the checkpoint."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Student(sizes, rngs=nnx.Rngs(0), dtype=dtype)))
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), nnx.to_pure_dict(abstract))
    skipped = {name: jax.tree.map(lambda _: ocp.PLACEHOLDER, tree) for name, tree in saved.items()}
    return nnx.merge(graphdef, ocp.load(checkpoint, skipped | {"params": params})["params"])
