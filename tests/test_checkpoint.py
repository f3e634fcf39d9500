"""Checkpoints: donated states, what is kept, what a killed save leaves, and loading the student alone."""

import functools
import json
import shutil
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroseg_jax.checkpoint import Checkpoints, _wait_for_description, load_student, sound_steps
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


def flip(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


DAMAGE = {
    "flipped": flip,
    "cut": lambda path, rng: path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size))]),
    "emptied": lambda path, _: path.write_bytes(b""),
    "removed": lambda path, _: path.unlink(),
    "grown": lambda path, _: path.write_bytes(path.read_bytes() + b"x"),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    """The workdir of checkpoints of the steps 1 and 2, whose states differ."""
    workdir = tmp_path_factory.mktemp("two")
    with Checkpoints(workdir, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(
                step, jax.tree.map(lambda a, step=step: jnp.asarray(a + step), STATE), {"next_index": step}
            )
    return workdir


def abstract() -> dict:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), STATE)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_restored_is_what_was_saved_whatever_happened_to_the_newest(two_checkpoints, damage, tmp_path, caplog):
    rng, older = np.random.default_rng(len(damage)), 0
    names = [path.relative_to(two_checkpoints) for path in (two_checkpoints / "checkpoints/2").rglob("*")]
    files = [name for name in names if (two_checkpoints / name).is_file()]
    assert len(files) > 8
    for name in files:
        workdir = tmp_path / name.name
        shutil.copytree(two_checkpoints, workdir)
        DAMAGE[damage](workdir / name, rng)
        with Checkpoints(workdir, keep=2) as checkpoints:
            step = checkpoints.latest
            state, position = checkpoints.restore(step, abstract())
        assert position == {"next_index": step}
        jax.tree.map(lambda a, b, step=step: np.testing.assert_array_equal(a, b + step), state, STATE)
        if step == 1:
            assert (workdir / "checkpoints/damaged-2").is_dir() and not (workdir / "checkpoints/2").exists()
            assert "step 2 in" in caplog.text and "step 1 is the newest sound checkpoint" in caplog.text
        older += step == 1
        shutil.rmtree(workdir)
        caplog.clear()
    # orbax's mark says nothing, and without any checksums the rest is as it was
    assert older >= len(files) - 2


def test_damage_is_told_in_one_sentence_where_nothing_else_is_left(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    for step in (1, 2):
        (tmp_path / f"run/checkpoints/{step}/state/manifest.ocdbt").unlink()
    told = (
        r"no checkpoint in .* is sound \(step 2: state/manifest.ocdbt is missing; step 1: .*\); put a copy in its place"
    )
    with pytest.raises(InputError, match=told):
        Checkpoints(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["1", "2"]


def test_a_checkpoint_of_earlier_versions_has_no_checksums(two_checkpoints, tmp_path, caplog):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    (tmp_path / "run/checkpoints/2/SHA256SUMS").unlink()
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.restore(2, abstract())[1] == {"next_index": 2}
        assert "holds no SHA256SUMS, so its files are read unchecked" in caplog.text
    (tmp_path / "run/checkpoints/2/state/manifest.ocdbt").write_bytes(b"")
    with Checkpoints(tmp_path / "run") as checkpoints, pytest.raises(InputError, match=r"/2 is damaged .* remove it"):
        checkpoints.restore(2, abstract())


def test_empty_and_foreign_things_among_the_checkpoints_do_no_harm(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    for name in ("7", "9/mine", "notes", "-1", "٣"):
        (folder / name).mkdir(parents=True)
    (folder / "11").touch()
    assert list(sound_steps(folder)) == [2, 1]
    with Checkpoints(tmp_path / "run", keep=1) as checkpoints:
        assert checkpoints.latest == 2
        checkpoints.save(7, jax.tree.map(jnp.asarray, STATE), {})
        checkpoints.wait()
    assert list(sound_steps(folder)) == [7]
    assert (folder / "foreign-9/mine").is_dir() and (folder / "foreign-7").is_dir() and (folder / "foreign-11").exists()


def test_a_file_in_the_place_of_the_checkpoints_is_told(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(InputError, match="checkpoints is a file, not the folder of a run's checkpoints"):
        Checkpoints(tmp_path)


def test_another_state_is_told(two_checkpoints):
    other = abstract() | {"more": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with (
        Checkpoints(two_checkpoints, keep=2) as checkpoints,
        pytest.raises(InputError, match="does not fit its config"),
    ):
        checkpoints.restore(2, other)


def test_a_workdir_without_a_checkpoint_is_told(tiny_config, tmp_path):
    with pytest.raises(InputError, match="holds no config"):
        load_student(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_json(tiny_config)))
    with pytest.raises(InputError, match="holds no checkpoints yet; let the run reach 5 steps"):
        load_student(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        load_student(tmp_path)


def test_checksums_wait_for_the_description_that_orbax_still_writes(tmp_path):
    path, expected = tmp_path / "_CHECKPOINT_METADATA", {"position": {"next_index": 3}}
    path.write_text('{"custom_metadata": {}}')  # as orbax leaves it at first

    def finish():
        time.sleep(0.3)
        path.write_text("{")  # half written
        time.sleep(0.1)
        path.write_text(json.dumps({"custom_metadata": expected}))

    thread = threading.Thread(target=finish)
    thread.start()
    _wait_for_description(path, expected)
    assert json.loads(path.read_text())["custom_metadata"] == expected
    thread.join()
    with pytest.raises(RuntimeError, match="so the checkpoint is not saved"):
        _wait_for_description(path, {"position": {}}, seconds=0.1)
