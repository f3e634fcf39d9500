"""An exported student whose config.json has sizes that no student has: one sentence."""

import json
import shutil
from pathlib import Path

import pytest
from flax import nnx

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.segment.io import load, save
from zeroseg_jax.segment.methods import StudentMethod
from zeroseg_jax.segment.segmenter import Segmenter


@pytest.fixture(scope="module")
def exported(tiny_student, tiny_clip, tmp_path_factory) -> Path:
    """A student with the image tower of the tiny CLIP, which `save` wrote."""
    clip, folder = load_clip(tiny_clip), tmp_path_factory.mktemp("exported")
    config = StudentConfig(image_size=16, embed_dim=8, tower=clip.model.config.vision, **tiny_student)
    student = Student(config, rngs=nnx.Rngs(0))
    save(Segmenter(StudentMethod(student, clip), clip), folder)
    load(folder)
    return folder


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("depth", -1, "student.depth is -1; it must be a whole number of at least 1"),
        ("heads", 0, "student.heads is 0"),
        ("width", 10**30, "student.width is 10+; it must be a whole number of at least 1 and at most 65536"),
        ("segment_tokens", [], "student.segment_tokens is"),
        ("segment_tokens", "many", "student.segment_tokens is 'many'"),
        ("image_size", 0, "image_size is 0"),
        ("embed_dim", None, "embed_dim is None"),
        ("tau", float("nan"), "student.tau is nan"),
        ("tower.depth", 10**9, "depth is 1000000000, expected a number from 1 to 4096"),
        ("tower.patch_size", 0, "patch_size is 0"),
        ("tower", 3, "does not describe a student"),
        ("colour", "red", "does not describe a student"),
    ],
)
def test_absurd_sizes_are_told(exported, tmp_path, key, value, told):
    folder = tmp_path / "exported"
    shutil.copytree(exported, folder)
    config = json.loads((folder / "config.json").read_text())
    group, _, last = f"student.{key}".rpartition(".")
    (config["student"]["tower"] if group.endswith("tower") else config["student"])[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=told):
        load(folder)
