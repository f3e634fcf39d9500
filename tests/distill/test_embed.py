"""The teacher over many images: batches in flight, and the progress bar."""

import jax
import numpy as np
import pytest

from zeroseg_jax.chips import CHIPS
from zeroseg_jax.data.pipeline import ordered_batches
from zeroseg_jax.data.sources.open import open_source
from zeroseg_jax.distill import embed as embed_module
from zeroseg_jax.distill import teacher_cache
from zeroseg_jax.distill.model_flops import teacher_flops
from zeroseg_jax.distill.teacher import load_teacher
from zeroseg_jax.distill.views import view_boxes
from zeroseg_jax.models.clip import CLIPConfig, TextConfig, VisionConfig


def test_the_next_batches_are_on_the_devices_before_one_is_waited_for(cached_config, monkeypatch):
    pulled = []

    def counted(*args, **options):
        for batch in ordered_batches(*args, **options):
            pulled.append(batch["index"].tolist())
            yield batch

    monkeypatch.setattr(embed_module, "ordered_batches", counted)
    config = cached_config
    config.teacher.chunk = 4
    source, augmentation = open_source(config.data), teacher_cache.augmentation_of(config)
    result = embed_module.embed_in_order(load_teacher(config), source, config, augmentation, [9, 2, 5, *range(11)])
    next(result)
    assert pulled == [[9, 2, 5, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    rest = list(result)
    assert len(rest) == 13 and pulled[3:] == [[9, 10, -1, -1]]
    np.testing.assert_allclose(rest[1].embeddings, rest[7].embeddings, atol=1e-3)  # image 5, in different batches
    assert all(embedded.valid for embedded in rest)


def test_what_the_progress_bar_says(monkeypatch):
    """Of a ViT-L/14 on the paper's views, with a chip whose peak is known."""
    teacher = CLIPConfig(VisionConfig(224, 14, 1024, 24, 16, 4096), TextConfig(), embed_dim=768)
    boxes = view_boxes((1, 2, 3, 4))
    flops = teacher_flops(teacher, boxes, 224)
    # OpenAI's tower takes 81 GMAC; here its last block of 24 is computed for the class token only
    assert len(boxes) == 30 and flops == pytest.approx(30 * 162e9 * 23 / 24, rel=0.02)
    monkeypatch.setattr(embed_module, "peak_flops", lambda devices: CHIPS["h100"].flops * len(devices))
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices("cpu")[:1] * 2)
    speed = embed_module.Speed(1000, 4.86e12)
    assert speed.update(100, now=5.0) == "images  4.86 TFLOP an image"
    said = "images  100.0 images/s  486 TFLOP/s = 25% of the peak  (4.86 TFLOP an image)"
    assert speed.update(100, now=6.0) == said
    assert speed.update(400, now=10.0) == said
    monkeypatch.setattr(embed_module, "peak_flops", lambda devices: None)
    speed = embed_module.Speed(1000, 4.86e12)
    speed.update(1, now=0.0)
    assert speed.update(1, now=1.0) == "images  1.0 images/s  4.86 TFLOP/s  (4.86 TFLOP an image)"
