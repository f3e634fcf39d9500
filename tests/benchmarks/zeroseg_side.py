"""The rows as a user of this package runs them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cached_step import Steps, on_cpu
from rows import LABELS, SLIDING, TEMPLATE, rotated, step_of
from worker import Outputs, serve

import zeroseg_jax
from zeroseg_jax.config import load_config
from zeroseg_jax.segment.prompts import TEMPLATES


def start(row: str, variant: str, folder: Path) -> Callable[[int], Outputs]:
    """Loads what the row needs; the function runs it once."""
    inputs = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    images = np.load(folder / "images.npy")
    if row == "image":
        clip = zeroseg_jax.load_clip(folder / "clip")
        pixels = np.asarray(clip.normalise(images.astype(np.float32) / 255))
        return lambda index: {"embeddings": np.asarray(clip.vision(pixels))}
    if row == "text":
        clip = zeroseg_jax.load_clip(folder / "clip")
        prompts = [template.format(label) for label in LABELS for template in TEMPLATES["imagenet80"]]
        return lambda index: {"embeddings": clip.encode_text(prompts)}
    if row == "files":
        return _files(folder)
    if row.startswith("sliding"):
        return _sliding(folder, row.removeprefix("sliding_"))
    if row.startswith(("online", "stored")):
        return _step(row, folder / f"teacher_cache_{row}", inputs["image_size"] < 224)
    model = zeroseg_jax.load(folder / "groupvit")
    batch = images[: int(row.removeprefix("groupvit"))]
    segment = model.segment_fn(inputs["image_size"], LABELS, templates=TEMPLATE, guide=0.0)
    return lambda index: {"label_map": np.asarray(segment(batch))}


def _files(folder: Path) -> Callable[[int], Outputs]:
    model = zeroseg_jax.load(folder / "clip")
    paths = sorted((folder / "images").iterdir())

    def run(index: int) -> Outputs:
        # each image as a whole and its map enlarged only, as the other side does it
        results = model.segment_batch(paths, rotated(index), templates=TEMPLATE, slide=0.0, guide=0.0)
        maps = np.concatenate([result.label_map.ravel() for result in results])
        return {"label_map": maps, "scores": np.stack([result.scores for result in results])}

    return run


def _sliding(folder: Path, readout: str) -> Callable[[int], Outputs]:
    model = zeroseg_jax.load(folder / "clip", readout=readout)
    paths = sorted((folder / "photographs").iterdir())

    def run(index: int) -> Outputs:
        options = {"slide": 0.0, "guide": 0.0, "rule": "sclip", **SLIDING}
        results = model.segment_batch(paths, rotated(index), templates=TEMPLATE, **options)
        return {"label_map": np.concatenate([result.label_map.ravel() for result in results])}

    return run


def _step(row: str, cache: Path, tiny: bool) -> Callable[[int], Outputs]:
    teacher, batch, dtype = step_of(row)
    config = on_cpu(load_config(Path(__file__).parents[2] / "configs" / "vitb16_online.py"), batch, tiny, dtype)
    steps = Steps(config, cache)
    state = steps.initial()

    def run(index: int) -> Outputs:
        nonlocal state
        state, loss = steps.run("cached" if teacher == "stored" else "online", state)
        assert np.isfinite(loss)
        return {}

    return run


if __name__ == "__main__":
    serve(start)
