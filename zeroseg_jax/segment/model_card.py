"""A model's card: the README.md of a saved folder, which the Hugging Face hub shows."""

from typing import Any

from zeroseg_jax.models.siglip import Siglip
from zeroseg_jax.segment.methods import DenseClipMethod, StudentMethod
from zeroseg_jax.segment.segmenter import Segmenter


def model_card(model: Segmenter, name: str) -> str:
    """The README.md of a saved model: front matter that the hub reads, use, settings, training and results.

    `name` is what `zeroseg_jax.load` will be given. `model.about` may have "teacher", "training" and "results".
    """
    parts = [_front_matter(model, name), f"# {name}", _what(model), _use(name), _table("Settings", _settings(model))]
    if model.about.get("training"):
        parts.append(_table("Training", model.about["training"]))
    if model.about.get("results"):
        parts.append(_results(model.about["results"]))
    return "\n\n".join(parts) + "\n"


def _front_matter(model: Segmenter, name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results, teacher = model.about.get("results"), model.about.get("teacher", "")
    found = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=results["dataset"],
            dataset_name=results["dataset"],
            dataset_split=results["split"],
            metric_type="mean_iou",
            metric_name="mIoU",
            metric_value=results["miou"],
        )
        for results in ([results] if results else [])
    ]
    data = ModelCardData(
        library_name="zeroseg_jax",
        pipeline_tag="image-segmentation",
        tags=["jax", "flax", "open-vocabulary", "semantic-segmentation", "zero-shot", _kind(model)],
        base_model=teacher if teacher.count("/") == 1 else None,  # a hub id
        model_name=name if found else None,
        eval_results=found or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _kind(model: Segmenter) -> str:
    if isinstance(model.method, StudentMethod):
        return "zeroseg"
    if isinstance(model.clip.model, Siglip):
        return "siglip"
    return "clip" if isinstance(model.method, DenseClipMethod) else "groupvit"


def _what(model: Segmenter) -> str:
    teacher = model.about.get("teacher")
    said = {
        "zeroseg": "A student that groups the patches of an image into a few segments and names each by any words."
        f" It was distilled, with no mask and no caption, from the frozen CLIP{f' `{teacher}`' if teacher else ''},"
        " which is in the folder `clip`.",
        "clip": "A CLIP that names each patch of an image by any words, by a training-free readout.",
        "siglip": "A SigLIP that names each patch of an image by any words, by a training-free readout of its head.",
        "groupvit": "A GroupViT, which groups the patches of an image into segments and names each by any words.",
    }
    return f"Segments images by words that you choose (open vocabulary). {said[_kind(model)]}"


def _use(name: str) -> str:
    return f"""## Use

```python
import zeroseg_jax

model = zeroseg_jax.load("{name}")
out = model.segment("photo.jpg", ["cat", "grass", "the sky"])
out.label_map  # int32 (H, W): index into out.labels
out.save("overlay.png")
```"""


def _settings(model: Segmenter) -> dict[str, Any]:
    image_size, patch_size = model.method.image_size, model.method.patch_size
    found: dict[str, Any] = {"image size": image_size, "patch size": patch_size}
    if isinstance(model.method, StudentMethod):
        config = model.method.config
        found |= {"segment tokens": config.segment_tokens, "width": config.width, "depth": config.depth}
    return found | {"templates": model.templates, **vars(model.options)}


def _results(results: dict[str, Any]) -> str:
    images = f"{results['images']} images of {results['dataset']}, {results['split']}; percent"
    rows = [("this model", results), *results.get("baselines", {}).items()]
    lines = [f"| {name} | {100 * row['miou']:.1f} | {100 * row['pixel_accuracy']:.1f} |" for name, row in rows]
    return "\n".join([f"## Results\n\n{images}.\n\n| | mIoU | pixel accuracy |\n|---|---|---|", *lines])


def _table(title: str, values: dict[str, Any]) -> str:
    lines = [f"| {name.replace('_', ' ')} | {_text(value)} |" for name, value in values.items()]
    return "\n".join([f"## {title}\n\n| | |\n|---|---|", *lines])


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(f"`{part}`" if isinstance(part, str) else str(part) for part in value[:8])
        return f"{shown}, and {len(value) - 8} more" if len(value) > 8 else shown
    return str(value).replace("|", "\\|") if value not in ("", None) else "none"
