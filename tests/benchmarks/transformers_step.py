"""A training step of the same size with torch and transformers: MAE's, and 14 views of each image through CLIP."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from onednn import LearningLinear, use_onednn
from rows import step_of
from torch import nn
from transformers import CLIPModel, ViTMAEConfig, ViTMAEForPreTraining
from worker import Outputs

GRIDS = (1, 2, 3)


def start_step(row: str, variant: str, folder: Path) -> Callable[[int], Outputs]:
    """Loads the teacher and makes a student; the function trains one step."""
    tiny = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))["image_size"] < 224
    kind, batch, _ = step_of(row)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "image_size": 32} if tiny else {}
    student = ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=True, **sizes)).train()
    teacher = CLIPModel.from_pretrained(folder / "clip").eval()
    size = teacher.config.vision_config.image_size
    low = "bfloat16" in variant
    embed = lambda views: teacher.get_image_features(pixel_values=views).pooler_output  # noqa: E731
    if low:
        teacher = teacher.bfloat16()
    if "compile" in variant:
        from torch._inductor import config

        config.freezing = True
        embed = torch.compile(embed)
    if variant == "onednn":
        use_onednn(teacher)
        use_onednn(student, LearningLinear)
    # every variant has the fused update: on a CPU it takes a fifth of the default's time, and foreach takes longer
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    pixels = torch.from_numpy(np.load(folder / "images.npy")[:batch]).permute(0, 3, 1, 2).float() / 255

    def run(index: int) -> Outputs:
        if kind == "online":
            with torch.no_grad():  # which freezing asks for; inference_mode costs the same
                for views in _views(pixels, size):  # one image at a time is fastest, here as there
                    assert len(embed(views.bfloat16() if low else views)) == len(views)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = student(pixel_values=pixels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        assert torch.isfinite(loss)
        return {}

    return run


def _views(pixels: torch.Tensor, size: int) -> list[torch.Tensor]:
    """All views of each image."""
    result = []
    for grid in GRIDS:
        side = pixels.shape[-1] // grid
        for y in range(grid):
            for x in range(grid):
                cell = pixels[:, :, y * side : (y + 1) * side, x * side : (x + 1) * side]
                result.append(nn.functional.interpolate(cell, size=(size, size), mode="bicubic", antialias=True))
    return list(torch.stack(result, dim=1))
