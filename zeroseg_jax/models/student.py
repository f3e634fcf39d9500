"""The student: MAE's encoder and decoder, and a segmentation head whose features are in CLIP's embedding space.

The paper is "Exploring Open-Vocabulary Semantic Segmentation from CLIP Vision Encoder Distillation Only" (ZeroSeg, ICCV
2023). Its segmentation head has two layers, a grouping block with 32 segments, two layers, a grouping block with 8
segments, and one layer over the 8 segment tokens. An MLP makes the image feature from their mean. The paper does not
say how a segment token becomes a feature in CLIP's space. Here the same MLP does it, after the last layer. A student
whose encoder is CLIP's image tower has another way, which is ours: CLIP's own class token looks at each segment
(`mask_class_token`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zeroseg_jax.config_ranges import check_ranges, check_whole_patches
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIP, PatchContext, VisionConfig, VisionTower
from zeroseg_jax.models.grouping import AssignmentConfig, GroupingStage, Keys, compose_assignments
from zeroseg_jax.models.layers import MLP, Attention, AttentionKind, Remat, Transformer, linear
from zeroseg_jax.models.mae import Decoder, Encoder, Masking, normalise, patch_grid, random_masking
from zeroseg_jax.models.mask_class_token import mask_class_tokens
from zeroseg_jax.models.preprocessing import Preprocessing
from zeroseg_jax.ops.layer_norm import layer_norm

_NOT_IN_GROUP = ("image_size", "embed_dim")
"""The sizes that a run's config has outside its group `student`."""


def check_sizes(sizes: Mapping[str, Any]) -> None:
    """Raises InputError for the first size that no student has.

    An image or patch size of 0 is one of them. In the config of a run it stands for the teacher's.
    """
    check_ranges({name if name in _NOT_IN_GROUP else f"student.{name}": value for name, value in sizes.items()})
    for name in ("image_size", "patch_size"):
        if sizes.get(name) == 0:
            raise InputError(f"{name} is 0; it must be at least 1")


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the student. The defaults are the paper's (ViT-B/16, CLIP-L teacher), or ours where it gives none."""

    image_size: int = 224
    """Side of the training images. Other sizes also work; their positions are scaled to this size."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    width: int = 768
    """Width of the encoder and of the segmentation head."""
    depth: int = 12
    """Blocks of the encoder."""
    heads: int = 12
    """Attention heads of the encoder."""
    mask_ratio: float = 0.6
    """Share of the patches that training hides from the encoder, in [0, 1)."""
    decoder_width: int = 512
    """Width of the reconstruction decoder. The paper does not give it; this is MAE's."""
    decoder_depth: int = 8
    """Blocks of the reconstruction decoder; 0 means no decoder."""
    decoder_heads: int = 16
    """Attention heads of the reconstruction decoder."""
    segment_tokens: tuple[int, ...] = (32, 8)
    """Segment tokens of each stage of the segmentation head."""
    segment_depths: tuple[int, ...] = (2, 2)
    """Transformer blocks of each stage, before its grouping block."""
    pool_depth: int = 1
    """Transformer blocks over the segment tokens of the last stage, before their mean."""
    segment_heads: int = 12
    """Attention heads of the segmentation head."""
    projection_width: int = 4096
    """Hidden width of the MLP to the teacher's space. The paper does not give it; this is ours."""
    segment_feature: str = "mlp"
    """The feature of a segment: "mlp" makes it from the segment token. With "mask_class_token" the class token of
    CLIP's image tower looks at the segment's patches; this needs `encoder="clip"`."""
    embed_dim: int = 768
    """Width of the teacher's embedding space."""
    assignment: str = "hard"
    """"hard": each token belongs to one segment, with straight-through gradients. "soft": it has a share in each."""
    gumbel: bool = True
    """Whether training adds Gumbel noise to the assignment."""
    tau: float = 1.0
    """Temperature of the assignment."""
    sum_assign: bool = False
    """Whether a segment is the sum of its tokens. If not, it is divided by (their weight + 1), as in GroupViT."""
    norm_eps: float = 1e-6
    """Added to the variance in layer norms."""
    remat: str = "none"
    """What the backward pass computes again to save memory: "none", "dots" or "full" (`layers.Transformer`)."""
    tower: VisionConfig | None = None
    """Sizes of a CLIP image tower that replaces MAE's encoder. None means MAE's encoder."""

    @classmethod
    def from_saved(cls, sizes: Mapping[str, Any]) -> "StudentConfig":
        """Reads the sizes from a saved configuration. An old one without `pool_depth` means `pool_depth=0`."""
        return cls(**{"pool_depth": 0, **sizes})

    def __post_init__(self) -> None:
        check_sizes({field.name: getattr(self, field.name) for field in fields(self)})
        widths = [(self.width, self.heads, "heads"), (self.width, self.segment_heads, "segment_heads")]
        if self.decoder_depth:
            widths.append((self.decoder_width, self.decoder_heads, "decoder_heads"))
        for width, heads, name in widths:
            if width % heads or width % 4:
                raise InputError(f"the student's width {width} must be divisible by 4 and by {name}={heads}")
        check_whole_patches("image_size", self.image_size, "the patch size", self.patch_size)
        if len(self.segment_tokens) != len(self.segment_depths) or not self.segment_tokens:
            raise InputError(
                f"segment_tokens {self.segment_tokens} and segment_depths {self.segment_depths} must be of the same"
                " length, one number for each stage"
            )
        if self.tower and (self.patch_size % self.tower.patch_size or self.width != self.tower.width):
            raise InputError(
                f"a CLIP tower of width {self.tower.width} and patches of {self.tower.patch_size} pixels cannot be the"
                f" encoder of a student of width {self.width} and patches of {self.patch_size}; its patches must be a"
                " multiple of the tower's"
            )
        if self.segment_feature == "mask_class_token" and not self.tower:
            raise InputError(
                "student.segment_feature is 'mask_class_token', which needs CLIP's image tower; set"
                " student.encoder='clip', or student.segment_feature='mlp'"
            )
        patches = (self.image_size // self.patch_size) ** 2
        if int(patches * (1 - self.mask_ratio)) == 0:
            raise InputError(
                f"mask_ratio {self.mask_ratio} leaves none of {patches} patches visible; set a smaller one"
            )


class TowerEncoder(nnx.Module):
    """CLIP's image tower as the encoder, so that the student can start from its teacher's weights.

    The student's patch size may be a multiple of the tower's. The images are then made smaller by this factor.
    """

    def __init__(
        self, config: VisionConfig, patch_size: int, *, dtype: Any = None, remat: Remat = "none", rngs: nnx.Rngs
    ):
        self.shrink = patch_size // config.patch_size
        self.tower = VisionTower(config, rngs=rngs, dtype=dtype, positions="sincos", remat=remat)

    def __call__(
        self, images: Float[Array, "b y x 3"], visible: Int[Array, "b k"] | None = None
    ) -> Float[Array, "b m d"]:
        """Normed class token and visible patches, m = 1 + k. `images` are in [0, 1]."""
        return self.tower.post_norm(self.tower(self.pixels(images), visible).tokens)

    def with_patch_context(
        self, images: Float[Array, "b y x 3"], visible: Int[Array, "b k"] | None = None
    ) -> tuple[Float[Array, "b m d"], PatchContext]:
        """The same, and what mask class tokens need."""
        tokens, context = self.tower.with_keys_and_values(self.pixels(images), visible)
        return self.tower.post_norm(tokens), context

    def pixels(self, images: Float[Array, "b y x 3"]) -> Float[Array, "b h w 3"]:
        """The tower's input, for images in [0, 1]."""
        pixels = Preprocessing().normalise(images)
        b, height, width, _ = pixels.shape
        s = self.shrink
        return pixels.reshape(b, height // s, s, width // s, s, 3).mean(axis=(2, 4))


class StudentOutput(NamedTuple):
    """The output for a batch of images, float32. s is the last number of `segment_tokens`."""

    segments: Float[Array, "b s e"]
    """Feature of each segment in the teacher's space (g_i in the paper), not unit length."""
    image: Float[Array, "b e"]
    """Feature of the image in the teacher's space (z in the paper), from the mean segment token; not unit length."""
    assignment: Float[Array, "b k s"]
    """Share of each visible patch in each segment; rows sum to 1. Always soft and without noise."""
    visible: Int[Array, "b k"]
    """Row-major indices of the visible patches. Without masking, all indices in order."""
    mask: Float[Array, "b n"]
    """1 where a patch is hidden, 0 where it is visible."""
    reconstruction: Float[Array, "b n c"] | None
    """Predicted pixels of all patches (`mae.pixel_targets`), c = patch_size^2 * 3."""
    stage_assignments: tuple[Float[Array, "b _ _"], ...]
    """The assignment of each stage: (b, k, S1), (b, S1, S2), ... `assignment` is their product."""


class Student(nnx.Module):
    """The student model. `dtype` is the dtype of the computation; parameters, softmaxes and outputs are float32.

    `attention` is the implementation of all its attention layers, as `layers.Attention` names it.
    """

    def __init__(self, config: StudentConfig, *, attention: AttentionKind = "plain", rngs: nnx.Rngs, dtype: Any = None):
        self.config = config
        common: dict[str, Any] = {"dtype": dtype, "remat": config.remat, "rngs": rngs}
        options = common | {"norm_eps": config.norm_eps}
        sizes = config.image_size, config.patch_size, config.width
        self.encoder: Encoder | TowerEncoder
        if config.tower is None:
            self.encoder = Encoder(*sizes, config.depth, config.heads, **options)
        else:
            self.encoder = TowerEncoder(config.tower, config.patch_size, **common)
        decoder = config.decoder_width, config.decoder_depth, config.decoder_heads
        self.decoder = Decoder(*sizes, *decoder, **options) if config.decoder_depth else None
        assignment_config = AssignmentConfig(config.assignment, config.gumbel, config.tau, config.sum_assign)
        stages = []
        for i, (tokens, depth) in enumerate(zip(config.segment_tokens, config.segment_depths, strict=True)):
            previous = config.segment_tokens[i - 1] if i else 0
            stage = depth, config.width, config.segment_heads, tokens, tokens, assignment_config
            stages.append(GroupingStage(*stage, previous=previous, **options))
        self.stages = nnx.List(stages)
        pool = config.pool_depth, config.width, config.segment_heads, 4 * config.width
        self.pool = Transformer(*pool, **options) if config.pool_depth else None
        self.norm = layer_norm(config.width, config.norm_eps, dtype=dtype, rngs=rngs)
        self.projection = MLP(config.width, config.projection_width, out=config.embed_dim, dtype=dtype, rngs=rngs)
        self.visual_projection = (
            linear(config.width, config.embed_dim, bias=False, dtype=dtype, rngs=rngs)
            if config.segment_feature == "mask_class_token"
            else None
        )
        self.set_attributes(Attention, implementation=attention)

    def __call__(
        self,
        images: Float[Array, "b y x 3"],
        *,
        noise: Float[Array, "b n"] | None = None,
        gumbel_key: Keys | None = None,
        reconstruct: bool = True,
    ) -> StudentOutput:
        """Segments images.

        Args:
            images: in [0, 1], of any size divisible by the patch size.
            noise: uniform noise that chooses the visible patches; None means that all are visible.
            gumbel_key: a key for the assignment's noise, or one for each image; None for inference.
            reconstruct: whether to run the reconstruction decoder. It also needs `noise`.

        Raises:
            InputError: the image size is not divisible by the patch size.
        """
        grid = patch_grid(images, self.config.patch_size)
        n = grid[0] * grid[1]
        masking = self._masking(noise, images, n)
        pixels = images.astype(jnp.float32)
        pixels = normalise(pixels) if self.config.tower is None else pixels
        visible = None if noise is None else masking.visible
        patch_context = None
        if isinstance(self.encoder, TowerEncoder) and self.visual_projection is not None:
            tokens, patch_context = self.encoder.with_patch_context(pixels, visible)
        else:
            tokens = self.encoder(pixels, visible)
        reconstruction = None
        if self.decoder is not None and noise is not None and reconstruct:
            reconstruction = self.decoder(tokens, masking, grid)

        segments, groups, assignments = tokens[:, 1:], None, []
        for i, stage in enumerate(self.stages):
            key = None if gumbel_key is None else jnp.vectorize(jax.random.fold_in)(gumbel_key, i)
            (segments, assignment), groups = stage(segments, groups, key)
            assignments.append(assignment)
        if self.pool is not None:
            segments, _ = self.pool(segments)

        segments, assignment = self.norm(segments), compose_assignments(assignments)
        mean = segments.mean(axis=1, keepdims=True)
        if patch_context is not None:
            assert isinstance(self.encoder, TowerEncoder) and self.visual_projection is not None
            features = self.visual_projection(mask_class_tokens(self.encoder.tower, patch_context, assignment))
            image = self.projection(mean)
        else:
            projected = self.projection(jnp.concatenate([segments, mean], axis=1))
            features, image = projected[:, :-1], projected[:, -1:]
        return StudentOutput(
            segments=features.astype(jnp.float32),
            image=image[:, 0].astype(jnp.float32),
            assignment=assignment,
            visible=masking.visible,
            mask=masking.mask,
            reconstruction=reconstruction,
            stage_assignments=tuple(assignments),
        )

    def copy_from_teacher(self, teacher: CLIP) -> None:
        """Copies the weights of the teacher's tower and, for mask class tokens, of its projection.

        Raises InputError for a student that has no tower.
        """
        if not isinstance(self.encoder, TowerEncoder):
            raise InputError("this student has no tower to fill; its student.encoder must be clip")
        nnx.update(self.encoder.tower, nnx.state(teacher.vision_tower))
        if self.visual_projection is not None:
            nnx.update(self.visual_projection, nnx.state(teacher.visual_projection))

    def _masking(self, noise: Float[Array, "b n"] | None, images: Float[Array, "b y x 3"], n: int) -> Masking:
        if noise is not None:
            return random_masking(noise, self.config.mask_ratio)
        all_patches = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (images.shape[0], n))
        return Masking(all_patches, all_patches, jnp.zeros(all_patches.shape))
