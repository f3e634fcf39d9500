"""What is timed: the rows of the table, and the folder of weights, images and words that both sides read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LABELS = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]
LABELS += ["table", "dog", "horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "screen"]
TEMPLATE = "a photo of a {}."
SLIDING = {"short_side": 336, "window": 224, "stride": 112, "scale": 40.0}
"""The protocol of the rows "sliding_...": that of SCLIP and those after it (`evaluate.vocabularies`)."""


@dataclass(frozen=True)
class Row:
    """A line of the table; `variants` are the ways of torch, the first one as it comes out of the box."""

    title: str
    variants: tuple[str, ...]


ROWS = {
    "image": Row("CLIP image encoder, batch 8", ("plain", "onednn", "compile")),
    "groupvit1": Row("GroupViT segmentation, batch 1", ("plain", "cached", "cached onednn", "cached compile")),
    "groupvit8": Row("GroupViT segmentation, batch 8", ("plain", "cached", "cached onednn", "cached compile")),
    "text": Row("CLIP text encoder, 80 templates x 20 classes", ("plain", "onednn")),
    "files": Row("JPEG files to label maps, 20 labels", ("plain", "cached", "cached onednn")),
    "sliding_naclip": Row("16 JPEG files of VOC's size by NACLIP, windows 224 / 112", ("plain", "windows")),
    "sliding_sc_clip": Row("16 JPEG files of VOC's size by SC-CLIP, windows 224 / 112", ("plain", "windows")),
    "online2": Row("training step, 14 views through the teacher, batch 2", ("plain", "onednn")),
    "online8": Row("training step, 14 views through the teacher, batch 8", ("plain", "onednn")),
    "stored2": Row("training step, stored embeddings, batch 2", ("plain", "onednn")),
    "stored8": Row("training step, stored embeddings, batch 8", ("plain", "onednn")),
    "online2_bfloat16": Row(
        "training step in bfloat16, 14 views through the teacher, batch 2",
        ("plain", "onednn", "bfloat16", "bfloat16 compile"),
    ),
    "stored2_bfloat16": Row("training step in bfloat16, stored embeddings, batch 2", ("plain", "onednn", "bfloat16")),
}
"""plain: as transformers' documentation shows it, in float32. onednn: linear layers by oneDNN with packed weights
instead of MKL, in float32. bfloat16: the teacher's weights in it and the student under autocast, which takes oneDNN
by itself. windows: one window after the other, where plain has those of an image in a batch. compile: torch.compile
with weights frozen into the graph; of a training step, the teacher. cached: labels embedded once, images in batches.
Training steps are not the same: torch's is MAE's alone, ours has the segment decoder and its losses besides. Ours is
in float32 but for the rows that say bfloat16, the dtype of configs/vitb16_online.py."""


def step_of(row: str) -> tuple[str, int, str]:
    """What a row such as "online8" or "stored2_bfloat16" trains with: its teacher, images in a step, and our dtype."""
    name, _, dtype = row.partition("_")
    return name[:6], int(name[6:]), dtype or "float32"


def rotated(index: int) -> list[str]:
    """The labels of a repeat, in an order of its own, so that no side remembers their embeddings from the last one."""
    start = index % len(LABELS)
    return LABELS[start:] + LABELS[:start]


def write_inputs(folder: Path, tiny: bool = False) -> None:
    """Writes the random models in Hugging Face form, the images, and `inputs.json`; B/16's sizes, or tiny ones."""
    images = 8 if tiny else 100
    size = 32 if tiny else 224
    _write_models(folder, tiny)
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 256, (8, size, size, 3), dtype=np.uint8))
    (folder / "images").mkdir()
    for i in range(images):
        # smooth, as photographs are: noise would make a JPEG several times as large
        noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
        picture = noise if i % 5 < 3 else noise.transpose(Image.Transpose.ROTATE_90)
        picture.save(folder / "images" / f"{i:03}.jpg", quality=90)
    (folder / "photographs").mkdir()
    for i in range(16):
        noise = rng.integers(0, 256, (9, 12, 3) if i % 5 < 3 else (12, 9, 3), dtype=np.uint8)
        voc = Image.fromarray(noise).resize((500, 375) if i % 5 < 3 else (375, 500))
        voc.save(folder / "photographs" / f"{i:03}.jpg", quality=90)
    # what the model sees of 640 x 480 pixels, on both sides: the whole image, its aspect kept to an eighth
    whole = [size, 40 if tiny else 288]
    inputs = {"image_size": size, "landscape": whole, "portrait": whole[::-1]}
    (folder / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")


def _write_models(folder: Path, tiny: bool) -> None:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, GroupViTConfig, GroupViTModel

    from zeroseg_jax.models.tokenizer import build_word_tokenizer
    from zeroseg_jax.segment.prompts import TEMPLATES

    texts = [template.format(label) for template in TEMPLATES["imagenet80"] for label in LABELS]
    tokenizer = build_word_tokenizer(texts, vocabulary=1000)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    size = 32 if tiny else 224
    processor = CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}), tokenizer
    )
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "clip": CLIPModel(CLIPConfig(**_clip_sizes(tiny, ends))),
        "groupvit": GroupViTModel(GroupViTConfig(**_groupvit_sizes(tiny, ends))),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)


def _clip_sizes(tiny: bool, ends: dict[str, Any]) -> dict[str, Any]:
    """Those of openai/clip-vit-base-patch16."""
    if tiny:
        tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = tower | {"image_size": 32, "patch_size": 8}
        return {"vision_config": vision, "text_config": tower | ends, "projection_dim": 8}
    return {"vision_config": {"patch_size": 16}, "text_config": ends, "projection_dim": 512}


def _groupvit_sizes(tiny: bool, ends: dict[str, Any]) -> dict[str, Any]:
    """Those of nvidia/groupvit-gcc-yfcc, which are transformers' defaults."""
    if tiny:
        tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        stages = {"depths": [1, 1], "num_group_tokens": [6, 3], "num_output_groups": [6, 3], "num_hidden_layers": 2}
        vision = tower | stages | {"image_size": 32, "patch_size": 8}
        text = tower | ends | {"num_hidden_layers": 2}
        return {"vision_config": vision, "text_config": text, "projection_dim": 8, "projection_intermediate_dim": 16}
    return {"text_config": ends, "vision_config": {}}
