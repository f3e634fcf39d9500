"""NACLIP's and SC-CLIP's readouts with torch and transformers, under the protocol that they share.

As one writes them from the papers: float32, one image after the other, the windows of an image as one batch ("plain"),
or one window after the other, as mmsegmentation slides them ("windows").
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rows import SLIDING
from torch.nn import functional as F

Grid = tuple[int, int]


def naclip(model: Any, pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Keys attend to keys, and more to those of near patches; no residual, no MLP."""
    hidden = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    block = model.vision_model.encoder.layers[-1]
    x = block.layer_norm1(hidden)
    key = _heads(block, "k_proj", x)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, 2).float()
    near = torch.exp(-(torch.cdist(places, places) ** 2) / (2 * 5.0**2))
    logits = key @ key.transpose(2, 3) * key.shape[-1] ** -0.5 + F.pad(near, (1, 0, 1, 0))
    return _mix(block, logits.softmax(-1), x)[:, 1:]


def sc_clip(model: Any, pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
    """SC-CLIP for a tower of 12 blocks."""
    layers = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
    block = model.vision_model.encoder.layers[-1]
    x = layers[10]
    odd = _outliers(x[:, 1:])
    similarity = _cosines(_repair(layers[8][:, 1:], odd, grid))
    coarse = _joining(_cosines(layers[3][:, 1:]))
    above = 3 * (similarity - similarity.mean((1, 2), keepdim=True))
    by_similarity = above.masked_fill(above < 0, -torch.inf).softmax(-1)[:, None]

    def read(patches: torch.Tensor, class_token: torch.Tensor) -> torch.Tensor:
        normed = block.layer_norm1(patches)
        key = _heads(block, "k_proj", normed)
        shares = (by_similarity + (key @ key.transpose(2, 3) * key.shape[-1] ** -0.5).softmax(-1)) / 2
        return coarse @ (_mix(block, shares, normed) + 0.3 * class_token[:, None])

    several = torch.stack(layers[3:10]).sum(0)
    repaired = _joining(similarity) @ _repair(x[:, 1:], odd, grid)
    return read(repaired, x[:, 0]) + read(several[:, 1:], several[:, 0])


READOUTS: dict[str, Callable[[Any, torch.Tensor, Grid], torch.Tensor]] = {"naclip": naclip, "sc_clip": sc_clip}


def segment(model: Any, readout: str, path: Path, texts: torch.Tensor, one_by_one: bool, processor: Any) -> Any:
    """The label map of an image file: windows at a stride, the scores averaged, enlarged and turned to labels."""
    image = np.asarray(Image.open(path).convert("RGB"))
    size, window, stride = SLIDING["short_side"], SLIDING["window"], SLIDING["stride"]
    height, width = image.shape[:2]
    factor = size / min(height, width)
    shape = int(height * factor + 0.5), int(width * factor + 0.5)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, shape, mode="bilinear").round() / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
    pixels = (pixels - mean) / std
    starts = [[min(k, n - window) for k in range(0, n - window + stride, stride)] for n in shape]
    corners = [(y, x) for y in starts[0] for x in starts[1]]
    windows = torch.cat([pixels[:, :, y : y + window, x : x + window] for y, x in corners])
    grid = (window // model.config.vision_config.patch_size,) * 2
    parts = [READOUTS[readout](model, x, grid) for x in (windows.split(1) if one_by_one else [windows])]
    dense = model.visual_projection(model.vision_model.post_layernorm(torch.cat(parts)))
    scores = dense / dense.norm(dim=-1, keepdim=True) @ texts.T
    maps = F.interpolate(scores.transpose(1, 2).unflatten(2, grid), (window, window), mode="bilinear")
    total, covering = torch.zeros(1, len(texts), *shape), torch.zeros(1, 1, *shape)
    for part, (y, x) in zip(maps, corners, strict=True):
        total[:, :, y : y + window, x : x + window] += part
        covering[:, :, y : y + window, x : x + window] += 1
    large = F.interpolate(total / covering, (height, width), mode="bilinear")
    return (large[0] * SLIDING["scale"]).softmax(0).argmax(0)


def _heads(block: Any, part: str, x: torch.Tensor) -> torch.Tensor:
    attention = block.self_attn
    return getattr(attention, part)(x).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _mix(block: Any, shares: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return block.self_attn.out_proj((shares @ _heads(block, "v_proj", x)).transpose(1, 2).flatten(2))


def _outliers(x: torch.Tensor) -> torch.Tensor:
    distance = ((x[:, :, None] - x[:, None]) ** 2).sum(-1)
    distance = distance.masked_fill(torch.eye(x.shape[1], dtype=torch.bool), torch.inf)
    nearest, where = distance.topk(30, largest=False)
    density = 30 / nearest[..., -1]
    score = torch.stack([d[w] for d, w in zip(density, where, strict=True)]).mean(-1) / density
    return score > score.quantile(0.95, -1, keepdim=True)


def _repair(x: torch.Tensor, odd: torch.Tensor, grid: Grid) -> torch.Tensor:
    sound = (~odd).float().unflatten(1, grid)[:, None]
    image = x.transpose(1, 2).unflatten(2, grid)
    kernel = torch.ones(3, 3)
    kernel[1, 1] = 0
    count = F.conv2d(sound, kernel[None, None], padding=1)
    around = F.conv2d(image * sound, kernel.expand(x.shape[2], 1, 3, 3), padding=1, groups=x.shape[2])
    mean = (around / count.clamp(min=1)).flatten(2).transpose(1, 2)
    return torch.where((odd & (count.flatten(1) > 0))[..., None], mean, x)


def _cosines(x: torch.Tensor) -> torch.Tensor:
    x = x / x.norm(dim=-1, keepdim=True)
    return x @ x.transpose(1, 2)


def _joining(cosines: torch.Tensor) -> torch.Tensor:
    kept = cosines.masked_fill(cosines < 0.4, 0)
    return kept / (kept.sum(-1, keepdim=True) + 1e-6)
