"""The rows with torch and transformers: as their documentation shows them, and the faster ways (`rows.ROWS`)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onednn import use_onednn
from PIL import Image
from rows import LABELS, TEMPLATE, rotated
from torch import nn
from torch_readouts import segment
from transformers import CLIPModel, CLIPProcessor, GroupViTModel
from transformers.models.groupvit.modeling_groupvit import get_grouping_from_attentions
from transformers_step import start_step
from worker import Outputs, serve

BATCH = 16


def start(row: str, variant: str, folder: Path) -> Callable[[int], Outputs]:
    """Loads what the row needs; the function runs it once."""
    inputs = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    if row.startswith(("online", "stored")):
        return start_step(row, variant, folder)
    kind = "groupvit" if row.startswith("groupvit") else "clip"
    model: Any = (GroupViTModel if kind == "groupvit" else CLIPModel).from_pretrained(folder / kind).eval()
    processor = CLIPProcessor.from_pretrained(folder / kind)
    if "onednn" in variant:
        use_onednn(model)
    if "compile" in variant:
        from torch._inductor import config

        config.freezing = True
        model.vision_model.compile()
    images = np.load(folder / "images.npy")
    if row == "image":
        pixels = _pixels(images, processor)
        run = lambda index: {"embeddings": model.get_image_features(pixel_values=pixels).pooler_output}  # noqa: E731
    elif row == "text":
        run = _text(model, processor)
    elif row == "files":
        run = (_files_batched if "cached" in variant else _files_one_by_one)(model, processor, folder, inputs)
    elif row.startswith("sliding"):
        run = _sliding(model, processor, folder, row.removeprefix("sliding_"), variant)
    else:
        pixels = _pixels(images[: int(row.removeprefix("groupvit"))], processor)
        run = (_groupvit_cached if "cached" in variant else _groupvit)(model, processor, pixels)
    # freezing asks for no_grad; to eager code it costs about the same
    context = torch.no_grad if "compile" in variant else torch.inference_mode

    def timed(index: int) -> Outputs:
        with context():
            return {name: value.numpy() for name, value in run(index).items()}

    return timed


def _pixels(images: np.ndarray, processor: Any) -> torch.Tensor:
    done = processor.image_processor(list(images), do_resize=False, do_center_crop=False, return_tensors="pt")
    return done["pixel_values"]


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _prompts(labels: list[str]) -> list[str]:
    return [TEMPLATE.format(label) for label in labels]


def _embed(model: Any, processor: Any, texts: list[str]) -> torch.Tensor:
    """Padded to the longest of the texts, as transformers does it."""
    return _unit(model.get_text_features(**processor(text=texts, padding=True, return_tensors="pt")).pooler_output)


def _text(model: Any, processor: Any) -> Callable[[int], dict[str, torch.Tensor]]:
    from zeroseg_jax.segment.prompts import IMAGENET80

    def run(index: int) -> dict[str, torch.Tensor]:
        result = [_embed(model, processor, [t.format(label) for t in IMAGENET80]) for label in LABELS]
        return {"embeddings": torch.cat(result)}

    return run


def _groupvit(model: Any, processor: Any, pixels: torch.Tensor) -> Callable[[int], dict[str, torch.Tensor]]:
    texts = processor(text=_prompts(LABELS), padding=True, return_tensors="pt")

    def run(index: int) -> dict[str, torch.Tensor]:
        output = model(**texts, pixel_values=pixels, output_segmentation=True)
        return _labelled(output.segmentation_logits / model.logit_scale.exp())

    return run


def _groupvit_cached(model: Any, processor: Any, pixels: torch.Tensor) -> Callable[[int], dict[str, torch.Tensor]]:
    """The same as `GroupViTModel.forward`, which embeds the labels again in each call."""
    with torch.no_grad():
        texts = _embed(model, processor, _prompts(LABELS))

    def run(index: int) -> dict[str, torch.Tensor]:
        output = model.vision_model(pixel_values=pixels, output_attentions=True)
        groups = output.last_hidden_state
        embeddings = _unit(model.visual_projection(groups.flatten(0, 1))).unflatten(0, groups.shape[:2])
        maps = get_grouping_from_attentions(output.attentions, pixels.shape[2:])
        return _labelled(torch.einsum("bsc,bsyx->bcyx", embeddings @ texts.T, maps))

    return run


def _labelled(scores: torch.Tensor) -> dict[str, torch.Tensor]:
    """The label maps, and the scores (b, c, y, x) that they are the largest of."""
    return {"label_map": scores.argmax(1), "label_map_scores": scores}


def _dense(model: Any, last: Any, pixels: torch.Tensor) -> torch.Tensor:
    """MaskCLIP: the values of the last block, through the output projection, the final norm and the projection."""
    vision = model.vision_model
    hidden = vision(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(hidden)))
    return _unit(model.visual_projection(vision.post_layernorm(values)))


def _enlarged(scores: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    maps = scores.transpose(1, 2).unflatten(2, grid)
    return nn.functional.interpolate(maps, size=size, mode="bilinear").argmax(1)


def _grid(pixels: torch.Tensor, model: Any) -> tuple[int, int]:
    patch = model.config.vision_config.patch_size
    return pixels.shape[2] // patch, pixels.shape[3] // patch


def _opened(folder: Path, inputs: dict[str, Any]) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Each image with the processor's options for it: the whole of it, instead of the square in its middle."""
    for path in sorted((folder / "images").iterdir()):
        image = Image.open(path).convert("RGB")
        height, width = inputs["landscape" if image.width > image.height else "portrait"]
        yield image, {"size": {"height": height, "width": width}, "do_center_crop": False}


def _files_one_by_one(model: Any, processor: Any, folder: Path, inputs: dict[str, Any]) -> Callable[[int], dict]:
    last = model.vision_model.encoder.layers.pop(-1)

    def run(index: int) -> dict[str, torch.Tensor]:
        result, maps = [], []
        for image, options in _opened(folder, inputs):
            pixels = processor.image_processor(image, return_tensors="pt", **options)["pixel_values"]
            texts = _embed(model, processor, _prompts(rotated(index)))
            scores = _dense(model, last, pixels) @ texts.T
            maps.append(_enlarged(scores, _grid(pixels, model), (image.height, image.width)).flatten())
            result.append(scores[0])
        return {"label_map": torch.cat(maps), "scores": torch.stack(result)}

    return run


def _files_batched(model: Any, processor: Any, folder: Path, inputs: dict[str, Any]) -> Callable[[int], dict]:
    last = model.vision_model.encoder.layers.pop(-1)

    def run(index: int) -> dict[str, torch.Tensor]:
        texts = _embed(model, processor, _prompts(rotated(index)))
        by_size: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = {}
        for i, (image, options) in enumerate(_opened(folder, inputs)):
            pixels = processor.image_processor(image, return_tensors="pt", **options)["pixel_values"]
            by_size.setdefault((image.height, image.width), []).append((i, pixels))
        result: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for size, images in by_size.items():
            for start in range(0, len(images), BATCH):
                indices, parts = zip(*images[start : start + BATCH], strict=True)
                pixels = torch.cat(parts)
                scores = _dense(model, last, pixels) @ texts.T
                maps = _enlarged(scores, _grid(pixels, model), size).flatten(1)
                result.update(zip(indices, zip(maps, scores, strict=True), strict=True))
        ordered = [result[i] for i in range(len(result))]
        return {"label_map": torch.cat([m for m, _ in ordered]), "scores": torch.stack([s for _, s in ordered])}

    return run


def _sliding(model: Any, processor: Any, folder: Path, readout: str, variant: str) -> Callable[[int], dict]:
    paths = sorted((folder / "photographs").iterdir())

    def run(index: int) -> dict[str, torch.Tensor]:
        texts = _embed(model, processor, _prompts(rotated(index)))
        one_by_one = variant == "windows"
        maps = [segment(model, readout, p, texts, one_by_one, processor.image_processor).flatten() for p in paths]
        return {"label_map": torch.cat(maps)}

    return run


if __name__ == "__main__":
    serve(start)
