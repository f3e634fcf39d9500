"""The frozen teacher: CLIP's image tower, which embeds the views of an image."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from zeroseg_jax.distill.views import crop_views, view_boxes, view_sizes
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIPConfig
from zeroseg_jax.models.clip_encoder import ClipEncoder, load_clip
from zeroseg_jax.models.layers import Attention, AttentionKind, with_kernels_in
from zeroseg_jax.models.siglip import SiglipConfig
from zeroseg_jax.ops.flash_attention import best_attention
from zeroseg_jax.ops.normalise import unit


class Teacher(NamedTuple):
    """The teacher of a run. `embed` is pure, so that it can be part of a jitted step; `params` are its weights."""

    embed: Callable[[Any, UInt8[Array, "b y x 3"]], Float[Array, "b v d"]]
    """(params, uint8 images of one device) -> unit-length float32 embeddings of all views of each image."""
    params: Any
    boxes: Float[np.ndarray, "v 4"]
    embed_dim: int
    configuration: dict[str, Any]
    """What decides the embeddings beside the weights, such as the activation; JSON-able."""
    sizes: CLIPConfig | SiglipConfig


def load_teacher(config: ConfigDict) -> Teacher:
    """The teacher and the views that `config` names, with kernels in the dtype of the computation.

    Raises InputError where the teacher's folder is missing or broken.
    """
    dtype = jnp.dtype(config.dtype)
    clip = load_clip(config.teacher.path, dtype=dtype)
    boxes = view_boxes(config.views.grids, config.views.windows)
    size = config.views.local_size
    teacher = make_teacher(clip, boxes, chunk=config.teacher.chunk, local_size=size, attention=best_attention(dtype))
    # they are never updated, so that float32 would only cost memory, and time to convert them in every step
    return teacher._replace(params=with_kernels_in(dtype, teacher.params))


def make_teacher(
    clip: ClipEncoder,
    boxes: Float[np.ndarray, "v 4"],
    chunk: int = 0,
    local_size: int = 0,
    attention: AttentionKind = "plain",
) -> Teacher:
    """A teacher that embeds the views `boxes` with `clip`, those of `chunk` images at once (0: of the whole batch).

    Views of a part of the image are made `local_size` pixels wide, if that is given, instead of the size that the
    teacher was made for; it costs less, and the teacher sees less.

    Raises:
        InputError: `local_size` is not a number of whole patches.
    """
    tower = nnx.merge(*nnx.split(clip.model))  # new modules with the same weights; `clip` does not change
    del tower.text_tower, tower.text_projection  # neither memory nor transfers for the text side
    tower.set_attributes(Attention, implementation=attention)
    graphdef, state = nnx.split(tower)
    normalise = clip.preprocessing.normalise  # not `clip.normalise`: `embed` would keep all of `clip` alive
    precision = "high" if tower.vision_tower.dtype == jnp.bfloat16 else "highest"  # bfloat16 keeps 8 bits of a view
    size, patch = clip.model.config.vision.image_size, clip.model.config.vision.patch_size
    if local_size % patch:
        near = patch * max(1, round(local_size / patch))
        raise InputError(f"views.local_size {local_size} is not divisible by the teacher's patch {patch}; {near} is")
    sizes = view_sizes(boxes, size, local_size)
    groups = {side: np.flatnonzero(sizes == side) for side in np.unique(sizes).tolist()}
    order = np.argsort(np.concatenate(list(groups.values())))

    def embed_part(params: Any, images: UInt8[Array, "b y x 3"]) -> Float[Array, "b v d"]:
        tower, groups_embedded = nnx.merge(graphdef, params), []
        for side, chosen in groups.items():
            views = crop_views(images.astype(jnp.float32) / 255, boxes[chosen], side, precision=precision)
            embeddings = tower.vision(normalise(views).reshape(-1, side, side, 3))
            groups_embedded.append(embeddings.reshape(len(images), len(chosen), -1))
        return unit(jnp.concatenate(groups_embedded, axis=1)[:, order])

    def embed(params: Any, images: UInt8[Array, "b y x 3"]) -> Float[Array, "b v d"]:
        batch = len(images)
        wanted = chunk or batch
        # the largest divisor, so that all parts have one shape
        part = next(n for n in range(min(wanted, batch), 0, -1) if batch % n == 0)
        if part == batch:
            return embed_part(params, images)
        parts = images.reshape(-1, part, *images.shape[1:])
        return jax.lax.map(lambda x: embed_part(params, x), parts).reshape(batch, len(boxes), -1)

    configuration = dataclasses.asdict(clip.model.config.vision)
    configuration |= {"mean": list(clip.preprocessing.mean), "std": list(clip.preprocessing.std)}
    return Teacher(embed, nnx.to_pure_dict(state), boxes, clip.embed_dim, configuration, clip.model.config)


def fingerprint(teacher: Teacher) -> str:
    """A hash of the teacher's weights, in the dtypes that `params` has them in."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(teacher.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
