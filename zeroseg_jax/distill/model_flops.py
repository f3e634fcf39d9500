"""What student and teacher should cost: FLOPs of their matrix products for one image, from their sizes alone.

Held against the count of the traced program (`tests/compiled.py`), it shows work that nobody asked for.
Norms, softmaxes and the losses are left out; they are less than a hundredth.
"""

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from zeroseg_jax.distill.views import view_sizes
from zeroseg_jax.models.clip import CLIPConfig
from zeroseg_jax.models.siglip import SiglipConfig
from zeroseg_jax.models.student import StudentConfig


def _linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def _attention(queries: int, keys: int, width: int) -> int:
    """The four projections, the logits and the mixing."""
    return 2 * (_linear(queries, width, width) + _linear(keys, width, width) + _linear(queries, keys, width))


def _mlp(tokens: int, inputs: int, hidden: int, outputs: int) -> int:
    return _linear(tokens, inputs, hidden) + _linear(tokens, hidden, outputs)


def _block(tokens: int, width: int, hidden: int) -> int:
    return _attention(tokens, tokens, width) + _mlp(tokens, width, hidden, width)


def image_flops(
    config: ConfigDict, student: StudentConfig, teacher: CLIPConfig | SiglipConfig, boxes: Float[np.ndarray, "v 4"]
) -> int:
    """One image in a training step of `config`: the student, and with online teaching the teacher on the views."""
    flops = student_flops(student, config.loss.mae > 0)
    if config.teacher.source == "online":
        flops += teacher_flops(teacher, boxes, config.image_size, config.views.local_size)
    return flops


def teacher_flops(
    teacher: CLIPConfig | SiglipConfig, boxes: Float[np.ndarray, "v 4"], image_size: int, local_size: int = 0
) -> int:
    """The teacher on the views `boxes` of an image, made `local_size` pixels wide as `make_teacher` does."""
    sides = view_sizes(boxes, teacher.vision.image_size, local_size).tolist()
    return sum(view_flops(teacher, side, image_size) for side in sides)


def view_flops(teacher: CLIPConfig | SiglipConfig, size: int, image_size: int) -> int:
    """The teacher on a view of `size` pixels, cutting it out included."""
    vision, has_head = teacher.vision, isinstance(teacher, SiglipConfig)
    patches, width = (size // vision.patch_size) ** 2, vision.width
    tokens = patches if has_head else patches + 1  # a class token
    blocks = (vision.depth if has_head else vision.depth - 1) * _block(tokens, width, vision.mlp_width)
    # the last block for the class token only, or SigLIP's head for its one query
    last = _attention(1, tokens, width) + _mlp(1, width, vision.mlp_width, width)
    projection = 0 if has_head else _linear(1, width, teacher.embed_dim)
    tower = _linear(patches, 3 * vision.patch_size**2, width) + blocks + last + projection
    crop = 2 * 3 * size * image_size * (image_size + size)
    return tower + crop


def student_flops(config: StudentConfig, reconstruct: bool) -> int:
    """The student on an image, forwards and backwards: twice as much again, less the gradient of the pixels."""
    patches, width = (config.image_size // config.patch_size) ** 2, config.width
    visible = int(patches * (1 - config.mask_ratio))
    patch = config.tower.patch_size if config.tower else config.patch_size
    hidden = config.tower.mlp_width if config.tower else 4 * width
    embedding = _linear(visible, 3 * patch**2, width)
    total = embedding + config.depth * _block(visible + 1, width, hidden)
    if config.decoder_depth and reconstruct:
        inner = config.decoder_width
        total += _linear(visible + 1, width, inner) + config.decoder_depth * _block(patches + 1, inner, 4 * inner)
        total += _linear(patches, inner, 3 * config.patch_size**2)
    tokens, before = visible, 0
    for segments, depth in zip(config.segment_tokens, config.segment_depths, strict=True):
        if before:
            total += _mlp(width, before, width // 2, segments)
        total += depth * _block(tokens + segments, width, 4 * width) + _grouping(tokens, segments, width)
        total += 2 * visible * before * segments  # the map of all stages
        tokens = before = segments
    total += config.pool_depth * _block(tokens, width, 4 * width)
    if config.segment_feature == "mask_class_token":
        # in each block the four projections of the class tokens, the attention to the patches and the MLP
        block = 4 * _linear(tokens, width, width) + 2 * _linear(tokens, visible, width)
        total += config.depth * (block + _mlp(tokens, width, hidden, width))
        total += _linear(tokens, width, config.embed_dim)
        tokens = 0
    total += _mlp(tokens + 1, width, config.projection_width, config.embed_dim)
    return 3 * total - embedding


def _grouping(tokens: int, segments: int, width: int) -> int:
    """A grouping block: the segment queries, their cross-attention, the assignment, and the merged segments."""
    queries = _mlp(width, segments, width // 2, segments)
    cross = _attention(segments, tokens, width) + _mlp(segments, width, 4 * width, width)
    return queries + cross + _attention(segments, tokens, width) + _mlp(segments, width, 4 * width, width)
