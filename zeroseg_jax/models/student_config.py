"""Reads the sizes of a student from the config of a run, or from the JSON of a run or of an exported model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIPConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import read_clip_config
from zeroseg_jax.models.hf_config import read_fields
from zeroseg_jax.models.siglip import SiglipConfig
from zeroseg_jax.models.student import StudentConfig, check_sizes

TeacherSizes = CLIPConfig | SiglipConfig


def with_teacher_sizes(config: ConfigDict, teacher: TeacherSizes | None = None) -> ConfigDict:
    """The config of a run in which `image_size` and `student.patch_size` are the teacher's where they are 0.

    `teacher` has the sizes of the teacher. None: its config.json is read.
    """
    if config.image_size and config.student.patch_size:
        return config
    vision = (teacher or read_clip_config(config.teacher.path)).vision
    config = config.copy_and_resolve_references()
    config.image_size = config.image_size or vision.image_size
    config.student.patch_size = config.student.patch_size or vision.patch_size
    return config


def make_student_config(config: ConfigDict, embed_dim: int, teacher: TeacherSizes | None = None) -> StudentConfig:
    """The sizes of the student that `config` describes, for a teacher whose embeddings have `embed_dim` numbers.

    With `config.student.encoder="clip"` the encoder has the sizes of the teacher's image tower. They are in `teacher`;
    None: the teacher's config.json is read.

    Raises:
        InputError: the sizes do not fit each other, or the teacher's image tower cannot be an encoder.
    """
    sizes = config.student.to_dict()
    if sizes.pop("encoder") == "clip":
        teacher = teacher or read_clip_config(config.teacher.path)
        if isinstance(teacher, SiglipConfig):
            raise InputError(
                f"student.encoder is 'clip', but the teacher {config.teacher.path} is a SigLIP, whose image tower has"
                " no class token; set student.encoder='mae' and student.segment_feature='mlp'"
            )
        tower = teacher.vision
        sizes |= {"tower": tower, "width": tower.width, "depth": tower.depth, "heads": tower.heads}
    return StudentConfig.from_saved({**sizes, "image_size": config.image_size, "embed_dim": embed_dim})


def read_student_config(values: Any, where: str, remedy: str) -> StudentConfig:
    """Makes a `StudentConfig` from its `dataclasses.asdict`, as JSON gives it back. Checks every size.

    Raises:
        InputError: `values` do not describe a student; the message names `where` and the `remedy`.
    """
    try:
        sizes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        check_sizes(sizes)
        if sizes.get("tower"):
            sizes["tower"] = VisionConfig(**_checked_tower(sizes["tower"]))
        return StudentConfig.from_saved(sizes)
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{where} does not describe a student ({error}); {remedy}") from error


def _checked_tower(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Raises InputError for sizes that an image tower cannot have."""
    numbers = {field.name: field.name for field in dataclasses.fields(VisionConfig) if field.type in ("int", int)}
    read_fields(dict(sizes), numbers, "student.tower")
    return dict(sizes)
