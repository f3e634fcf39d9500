"""Reading and writing models that segment: a workdir, a saved folder, a CLIP or a GroupViT; and the model's card."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from zeroseg_jax.checkpoint import load_student
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip_encoder import FAMILIES, form_of, load_clip
from zeroseg_jax.models.groupvit_encoder import load_groupvit
from zeroseg_jax.models.precision import check_dtype
from zeroseg_jax.models.siglip import Siglip
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.models.student_config import read_student_config
from zeroseg_jax.models.weights.folder import CONFIG, ModelFolder, open_folder, read_json_object, write_folder
from zeroseg_jax.models.weights.hub import upload_folder
from zeroseg_jax.models.weights.table import SAME, Entry, Table, dump_weights, flat, load_weights
from zeroseg_jax.segment.methods import DenseClipMethod, GroupViTMethod, StudentMethod
from zeroseg_jax.segment.options import Options, change, from_config
from zeroseg_jax.segment.segmenter import Segmenter
from zeroseg_jax.storage import is_remote, to_path, written_locally


def load(source: str | Path, dtype: Any = None, *, readout: str | None = None) -> Segmenter:
    """Loads a model that segments. The contents of `source` say which kind it is.

    Args:
        source: the workdir of a distillation run (its newest checkpoint, with the teacher that its config names), a
            folder written by `save`, whatever `load_clip` takes, a GroupViT in Hugging Face form, the name of a
            shipped model, or a hub id of any of these.
        dtype: of the computation, such as jnp.bfloat16 or "bfloat16"; None is float32. Parameters are float32.
        readout: how a CLIP gives an embedding for every patch, one of `models.readouts.READOUTS`. None: as the
            model was saved, or else the default. A SigLIP has "maskclip" only, read from its pooling head.

    Raises:
        InputError: `source` cannot be reached or is none of these, its weights do not fit its configuration, or it has
            no such readout.
    """
    model = _load(source, dtype)
    if readout is not None:
        model.options = model.changed({"readout": readout})
    return model


def _load(source: str | Path, dtype: Any) -> Segmenter:
    dtype, folder = check_dtype(dtype), open_folder(source)
    raw = folder.json(CONFIG) if folder.find(CONFIG) else {}
    kind = raw.get("model_type")
    if kind is None and "task" not in raw and form_of(folder) in ("openclip", "state dict"):
        kind = "clip"
    elif folder.find(CONFIG) is None:
        raise InputError(
            f"{folder.name} has no config.json; give the workdir of a run, an exported model, a CLIP or a GroupViT"
        )
    if kind in FAMILIES or kind == "siglip2":  # which `load_clip` refuses with a sentence
        clip = load_clip(folder, dtype)
        return Segmenter(
            DenseClipMethod(clip, raw.get("segmenter", {}).get("image_size")), clip, **_defaults(folder, raw)
        )
    if kind == "groupvit":
        groupvit = load_groupvit(folder, dtype)
        return Segmenter(GroupViTMethod(groupvit), groupvit, **_defaults(folder, raw))
    if kind == "zeroseg":
        return _load_exported(folder, raw, dtype)
    if raw.get("task") == "distill":
        return _load_workdir(folder.path, dtype)
    if raw.get("task") == "teacher":
        raise InputError(f"{folder.name} is the workdir of a teacher; give {folder.name}/clip, the CLIP that it made")
    said = f"of the type {kind!r}" if kind else "of an unknown type"
    raise InputError(f"{folder.name} holds a model {said}; expected a workdir, an exported model, a CLIP or a GroupViT")


def save(model: Segmenter, folder: str | Path, name: str | None = None) -> None:
    """Writes a model with its defaults and its text encoder as one folder, which `load` reads.

    The folder has config.json, model.safetensors and the model's card, README.md. For a CLIP or a GroupViT it is in
    Hugging Face form. For a student, its folder `clip` has the CLIP. `name` is the model's name in the card, by default
    that of the folder. `folder` may be gs://...

    Raises InputError for any other address, and for a method that is only a baseline of the evaluation.
    """
    name = name or (str(folder) if is_remote(folder) else to_path(folder).resolve().name)
    with written_locally(folder) as local:
        _save(model, local, name)


def _save(model: Segmenter, folder: Path, name: str) -> None:
    method = model.method
    defaults: dict[str, Any] = {
        "templates": list(model.templates),
        "options": dataclasses.asdict(model.options),
        "definitions": {label: list(phrases) for label, phrases in model.definitions.items()},
        "about": dict(model.about),
    }
    if isinstance(method, StudentMethod):
        config = {"model_type": "zeroseg", "student": dataclasses.asdict(method.config)}
        student = nnx.merge(nnx.graphdef(method.student), method.params["student"])
        write_folder(folder, config, dump_weights(student, _saved_names(student)))
        model.clip.save(folder / "clip")
    elif isinstance(method, DenseClipMethod | GroupViTMethod):
        model.clip.save(folder)
        if isinstance(method, DenseClipMethod):
            defaults["image_size"] = method.image_size
    else:
        raise InputError(f"a {type(method).__name__} cannot be saved; save the CLIP that it reads out")
    write_defaults(folder, defaults)
    (folder / "README.md").write_text(model_card(model, name), encoding="utf-8")


def load_earlier_student(source: str, sizes: StudentConfig) -> Student:
    """The student in a workdir, an exported folder or a hub id, for a run that starts from it (`init.student`).

    Raises:
        InputError: it is no student, or it has other sizes than the student of the run.
    """
    method = load(source).method
    if not isinstance(method, StudentMethod):
        raise InputError(f"init.student={source} holds no student; name the workdir of a run or an exported student")
    saved, expected = dataclasses.asdict(method.student.config), dataclasses.asdict(sizes)
    # these change the training, and no parameter
    free = ("mask_ratio", "assignment", "gumbel", "tau", "sum_assign", "remat")
    different = [
        f"{name} {saved[name]} instead of {expected[name]}"
        for name in expected
        if name not in free and saved[name] != expected[name]
    ]
    if different:
        raise InputError(f"init.student={source} is a student of other sizes: {', '.join(different)}")
    return method.student


def push_to_hub(model: Segmenter, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Saves the model and uploads the folder to the Hugging Face hub, and returns its address; see `upload_folder`."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, name=repo_id)
        return upload_folder(repo_id, folder, private=private, token=token)


def write_defaults(folder: Path, defaults: Mapping[str, Any]) -> None:
    """Adds to the config.json of `folder` the defaults of segmentation, which `load` reads: any of `templates`,
    `options`, `definitions`, `about` and, for a CLIP, `image_size`."""
    config = read_json_object(folder / "config.json") | {"segmenter": dict(defaults)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _load_workdir(folder: Path, dtype: Any) -> Segmenter:
    student, config = load_student(folder, dtype)
    teacher = open_folder(config.teacher.path)
    clip = load_clip(teacher, dtype)
    if clip.embed_dim != student.config.embed_dim:
        raise InputError(
            f"the student in {folder} has embeddings of {student.config.embed_dim} numbers, its teacher"
            f" {config.teacher.path} now has {clip.embed_dim}; put the teacher of the run back in its place"
        )
    templates = (
        config.eval.get("templates")
        or _defaults(teacher, teacher.json(CONFIG) if teacher.find(CONFIG) else {})["templates"]
    )
    about = _about(folder, config)
    return Segmenter(
        StudentMethod(student, clip), clip, templates=templates, options=from_config(config.eval), about=about
    )


def _load_exported(folder: ModelFolder, raw: dict[str, Any], dtype: Any) -> Segmenter:
    config = read_student_config(raw.get("student"), str(folder.path / CONFIG), "export it again")

    def make() -> Student:
        return Student(config, rngs=nnx.Rngs(0), dtype=dtype)

    student = load_weights(make, folder.tensors(), _saved_names(nnx.eval_shape(make)), folder.name)
    clip = load_clip(folder.sub("clip"), dtype)
    return Segmenter(StudentMethod(student, clip), clip, **_defaults(folder, raw))


def _defaults(folder: ModelFolder, raw: dict[str, Any]) -> dict[str, Any]:
    """The defaults that `write_defaults` wrote into the folder. A folder that comes from elsewhere has none."""
    values = raw.get("segmenter", {})
    try:
        saved_options = values.get("options", values.get("readout", {}))  # "readout" is the name that version 0.1 wrote
        options = change(Options(), saved_options)
        saved = {name: dict(values.get(name, {})) for name in ("definitions", "about")}
        return {"templates": values.get("templates", "photo"), "options": options} | saved
    except (AttributeError, TypeError, ValueError) as error:
        where = folder.path / CONFIG
        raise InputError(f"the segmenter's defaults in {where} are damaged ({error}); save the model again") from error


def _about(folder: Path, config: ConfigDict) -> dict[str, Any]:
    """What a model card says of the student in a workdir. It does not give full paths of folders on this machine."""
    teacher = config.teacher.path
    about: dict[str, Any] = {"teacher": Path(teacher).name if Path(teacher).exists() else teacher}
    about["training"] = {
        "teacher": about["teacher"],
        "images": f"{config.data.source}, {config.data.split}"
        + (f", first {config.data.limit}" if config.data.limit else ""),
        **{key: config[key] for key in ("steps", "batch_size", "seed")},
        "loss": {name: value for name, value in config.loss.items() if value},
    }
    path = folder / "results.json"
    try:  # a card without results is better than no model
        results = read_json_object(path) if path.is_file() else {}
        if results and not results["settings"]["model"]:  # of this very run
            scores = {key: results[key] for key in ("dataset", "split", "images", "miou", "pixel_accuracy")}
            keys = ("miou", "pixel_accuracy")
            rows = results["baselines"].items()
            about["results"] = scores | {"baselines": {name: {key: row[key] for key in keys} for name, row in rows}}
    except (InputError, LookupError, TypeError, AttributeError) as error:
        logging.warning("%s is damaged (%r), so the model's card has no results; evaluate again", path, error)
    return about


def _saved_names(student: Student) -> Table:
    """The weight table of our own files: every parameter by its path."""
    return Table(tuple(Entry(path, path, SAME) for path in flat(nnx.state(student))))


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
    eval_results = [
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
        model_name=name if eval_results else None,
        eval_results=eval_results or None,
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
    rows: dict[str, Any] = {"image size": image_size, "patch size": patch_size}
    if isinstance(model.method, StudentMethod):
        config = model.method.config
        rows |= {"segment tokens": config.segment_tokens, "width": config.width, "depth": config.depth}
    return rows | {"templates": model.templates, **vars(model.options)}


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
        parts = ", ".join(f"`{part}`" if isinstance(part, str) else str(part) for part in value[:8])
        return f"{parts}, and {len(value) - 8} more" if len(value) > 8 else parts
    return str(value).replace("|", "\\|") if value not in ("", None) else "none"
