"""GroupViT (Xu et al. 2022, "GroupViT: Semantic Segmentation Emerges from Text Supervision"), for inference.

The image tower is a ViT without a class token. Its stages merge patches into fewer and fewer segment tokens
(`grouping`). The text tower is CLIP's. Two MLPs with a batch norm project both to one space. Sizes and names follow the
checkpoints `nvidia/groupvit-*` in the form of Hugging Face's `GroupViTModel`.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import TextConfig, TextTower, cut_patches
from zeroseg_jax.models.grouping import AssignmentConfig, GroupingStage, compose_assignments
from zeroseg_jax.models.hf_config import TEXT_FIELDS, TOWER_FIELDS, read_fields, read_section
from zeroseg_jax.models.layers import Transformer, linear
from zeroseg_jax.models.positions import resize_positions
from zeroseg_jax.ops.layer_norm import layer_norm

_VISION_FIELDS = {hf_name: name for hf_name, name in TOWER_FIELDS.items() if name not in ("depth", "activation")}
_VISION_FIELDS |= {"image_size": "image_size", "patch_size": "patch_size"}
_STAGE_FIELDS = {"depths": "depths", "num_group_tokens": "group_tokens", "num_output_groups": "segments"}
_FIELDS = {
    "projection_dim": "embed_dim",
    "projection_intermediate_dim": "projection_width",
    "logit_scale_init_value": "logit_scale",
}
_FIXED = {"hidden_act": "gelu", "assign_eps": 1.0, "assign_mlp_ratio": [0.5, 4]}
"""Settings that all published checkpoints share. `grouping` does not support other values."""
_TEXT = TextConfig(width=256, heads=4, mlp_width=1024)


@dataclass(frozen=True)
class GroupViTVisionConfig:
    """Sizes of the image tower. The defaults are the published checkpoints'. Tuples have a number for each stage."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 384
    heads: int = 6
    mlp_width: int = 1536
    norm_eps: float = 1e-5
    depths: tuple[int, ...] = (6, 3, 3)
    """Numbers of transformer blocks."""
    group_tokens: tuple[int, ...] = (64, 8, 0)
    """Numbers of group tokens. A stage with 0 has no grouping block."""
    segments: tuple[int, ...] = (64, 8, 8)
    """Numbers of segment tokens after the stage."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InputError(f"a GroupViT of width {self.width} cannot have {self.heads} heads; they must divide it")
        stages = len(self.depths)
        if not any(self.group_tokens) or len(self.group_tokens) != stages or len(self.segments) != stages:
            raise InputError(
                f"a GroupViT's depths {self.depths}, group_tokens {self.group_tokens} and segments {self.segments} must"
                " have one number for each stage, and group tokens in one at least"
            )
        for i, groups in enumerate(self.group_tokens):
            if groups and not self.segments[i]:
                raise InputError(f"stage {i} of a GroupViT has {groups} group tokens but makes no segments")
            if groups and i and self.previous(i) and self.previous(i) != self.group_tokens[i - 1]:
                raise InputError(
                    f"stage {i} of a GroupViT expects {self.previous(i)} group tokens of the stage before it, which has"
                    f" {self.group_tokens[i - 1]}"
                )

    @property
    def grid(self) -> int:
        """Patches along one side of the position table."""
        return self.image_size // self.patch_size

    def previous(self, stage: int) -> int:
        """The number of group tokens that a stage gets from the stage before it; 0 for the first stage."""
        return self.segments[stage - 1] if stage else 0


@dataclass(frozen=True)
class GroupViTConfig:
    """Sizes of both towers and the projections, and the initial log of the inverse temperature."""

    vision: GroupViTVisionConfig = GroupViTVisionConfig()
    text: TextConfig = _TEXT
    embed_dim: int = 256
    projection_width: int = 4096
    logit_scale: float = 2.6592

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> "GroupViTConfig":
        """Reads the content of config.json of a `GroupViTModel`. Raises InputError if it is not valid."""
        vision, text = read_section(raw, "vision_config"), read_section(raw, "text_config")
        for name, supported in _FIXED.items():
            value = vision.get(name, supported)
            if (list(value) if isinstance(value, tuple) else value) != supported:
                raise InputError(
                    f"the configuration's vision_config.{name} is {value!r}, only {supported!r} is supported"
                )
        stages: dict[str, Any] = {}
        for hf_name, name in _STAGE_FIELDS.items():
            if vision.get(hf_name) is not None:
                stages[name] = _counts(vision[hf_name], f"vision_config.{hf_name}")
        return cls(
            vision=GroupViTVisionConfig(**read_fields(vision, _VISION_FIELDS, "vision_config"), **stages),
            text=replace(_TEXT, **read_fields(text, TEXT_FIELDS, "text_config")),
            **read_fields(raw, _FIELDS),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json in the form that `transformers.GroupViTModel` reads."""
        vision = {hf_name: getattr(self.vision, name) for hf_name, name in _VISION_FIELDS.items()}
        stages = {hf_name: list(getattr(self.vision, name)) for hf_name, name in _STAGE_FIELDS.items()}
        depth = {"num_hidden_layers": sum(self.vision.depths)}
        text = {hf_name: getattr(self.text, name) for hf_name, name in TEXT_FIELDS.items()}
        return {
            "architectures": ["GroupViTModel"],
            "model_type": "groupvit",
            **{hf_name: getattr(self, name) for hf_name, name in _FIELDS.items()},
            "vision_config": {"model_type": "groupvit_vision_model"} | vision | stages | depth | _FIXED,
            "text_config": {"model_type": "groupvit_text_model"} | text,
        }


def _counts(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(n) is int and n >= 0 for n in value):
        raise InputError(f"the configuration's {where} is {value!r}, expected a list with one number for each stage")
    return tuple(value)


class GroupViTVisionOutput(NamedTuple):
    """The output of the image tower. Under `jit`, parts that are not used are not computed."""

    segments: Float[Array, "b s d"]
    """Segment tokens of the last stage, normed."""
    embedded: Float[Array, "b n d"]
    """Patches with their positions: the input of the first stage."""
    stages: tuple[Float[Array, "b _ d"], ...]
    """Output of every stage."""
    groups: tuple[Float[Array, "b _ d"], ...]
    """Group tokens after the transformer of every stage that has group tokens."""
    assignments: tuple[Float[Array, "b _ _"], ...]
    """Soft assignment of every stage that has group tokens: (b, n, 64), (b, 64, 8). Rows sum to 1; float32."""


class GroupViTOutput(NamedTuple):
    """The output for a batch of images, float32. s is the last number of `segments`."""

    segments: Float[Array, "b s e"]
    """The embedding of each segment in the shared space, not unit length."""
    image: Float[Array, "b e"]
    """The embedding of the mean segment token, not unit length."""
    assignment: Float[Array, "b n s"]
    """Share of each patch (row-major) in each segment; rows sum to 1. Soft, although features are merged hard."""
    tower: GroupViTVisionOutput


class GroupViTVisionTower(nnx.Module):
    """Patch embedding, norm, learned positions, and the stages."""

    def __init__(self, config: GroupViTVisionConfig, *, dtype: Any = None, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        options: dict[str, Any] = {"norm_eps": config.norm_eps, "dtype": dtype, "rngs": rngs}
        # a matrix product of patches equals the checkpoints' strided convolution, and is faster
        self.patch_embedding = linear(config.patch_size**2 * 3, width, dtype=dtype, rngs=rngs)
        self.patch_norm = layer_norm(width, config.norm_eps, dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.grid**2, width)))
        stages: list[GroupingStage | Transformer] = []
        for i, (depth, groups) in enumerate(zip(config.depths, config.group_tokens, strict=True)):
            if not groups:
                stages.append(Transformer(depth, width, config.heads, config.mlp_width, **options))
                continue
            sizes = depth, width, config.heads, groups, config.segments[i], AssignmentConfig()
            stage = GroupingStage(*sizes, previous=config.previous(i), mlp_width=config.mlp_width, **options)
            stages.append(stage)
        self.stages = nnx.List(stages)
        self.norm = layer_norm(width, config.norm_eps, dtype=dtype, rngs=rngs)

    def embed(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b n d"]:
        """Normed patches with their positions. The positions are interpolated to the size of the images."""
        grid = self.config.grid
        patches, new_grid = cut_patches(pixels, self.config.patch_size)
        x = self.patch_norm(self.patch_embedding(patches))
        return x + resize_positions(self.position_embedding[...], (grid, grid), new_grid).astype(x.dtype)

    def __call__(self, pixels: Float[Array, "b y x 3"]) -> GroupViTVisionOutput:
        x = embedded = self.embed(pixels)
        groups, outputs, all_groups, assignments = None, [], [], []
        for stage in self.stages:
            if isinstance(stage, GroupingStage):
                (x, assignment), groups = stage(x, groups)
                assignments.append(assignment)
                all_groups.append(groups)
            else:
                x, _ = stage(x)
            outputs.append(x)
        return GroupViTVisionOutput(self.norm(x), embedded, tuple(outputs), tuple(all_groups), tuple(assignments))


class Projection(nnx.Module):
    """Linear, batch norm with running statistics, ReLU, linear."""

    def __init__(self, width: int, hidden: int, out: int, *, dtype: Any = None, rngs: nnx.Rngs):
        self.fc1 = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, use_running_average=True, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        return self.fc2(jax.nn.relu(self.norm(self.fc1(x))))


class GroupViT(nnx.Module):
    """Both towers and their projections. `dtype` is the dtype of the computation. Parameters are float32."""

    def __init__(self, config: GroupViTConfig, *, rngs: nnx.Rngs, dtype: Any = None):
        self.config = config
        self.vision_tower = GroupViTVisionTower(config.vision, rngs=rngs, dtype=dtype)
        self.text_tower = TextTower(config.text, rngs=rngs, dtype=dtype)
        out = config.projection_width, config.embed_dim
        self.visual_projection = Projection(config.vision.width, *out, dtype=dtype, rngs=rngs)
        self.text_projection = Projection(config.text.width, *out, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale, jnp.float32))

    def segments(self, pixels: Float[Array, "b y x 3"]) -> GroupViTOutput:
        """Segments images that are normalised with the checkpoint's mean and std, of any size of at least one patch."""
        tower = self.vision_tower(pixels)
        embeddings = self.visual_projection(tower.segments).astype(jnp.float32)
        image = self.visual_projection(tower.segments.mean(axis=1)).astype(jnp.float32)
        return GroupViTOutput(embeddings, image, compose_assignments(tower.assignments), tower)

    def vision(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b d"]:
        """Image embeddings, float32, not unit length. `pixels` are as for `segments`."""
        return self.segments(pixels).image

    def text(self, tokens: Int[Array, "c t"]) -> Float[Array, "c d"]:
        """Text embeddings, float32, not unit length. `tokens` have start and end tokens; t is at most `context`."""
        return self.text_projection(self.text_tower.pool(tokens)).astype(jnp.float32)
