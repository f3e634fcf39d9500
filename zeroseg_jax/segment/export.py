"""The segment function as a file of StableHLO, which runs without this package."""

import dataclasses
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Float, Int32, UInt8

from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.function import ImageSize, make_function, read_size
from zeroseg_jax.segment.prompts import Background, Templates, check_background, kept, resolve_templates
from zeroseg_jax.segment.segmenter import Segmenter

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    model: Segmenter,
    path: str | Path,
    labels: Iterable[str] | None = None,
    *,
    image_size: ImageSize | None = None,
    templates: Templates | None = None,
    background: Background = None,
    **options: Any,
) -> None:
    """Writes the function of `Segmenter.segment_fn`, weights included, for batches of any size on CPU, GPU and TPU.

    The file at `path` is a `jax.export.Exported`. It needs jax and flatbuffers, and not this package:

        segment = jax.export.deserialize(open(path, "rb").read()).call
        label_map = segment(images)  # uint8 (B, H, W, 3) -> int32 (B, H, W)

    Without `labels` the words stay open, and the function takes their embeddings (`Segmenter.embed_labels`) too:

        label_map = segment(images, embeddings)  # float32 (C, D), for any number of labels

    PATH.json beside it tells the shapes, the labels and the options.

    Args:
        path: where it is written, such as "segment.jax"; the folder must exist.
        image_size: (height, width) of the images, or the side of squares; None is the model's own.
        labels, templates, background, options: as for `Segmenter.segment`.

    Raises:
        InputError: flatbuffers is not installed, a label or option cannot be used, or `path` cannot be written.
    """
    if find_spec("flatbuffers") is None:
        raise InputError("exporting needs the package flatbuffers; pip install flatbuffers, or zeroseg_jax[export]")
    height, width = read_size(model.method.image_size if image_size is None else image_size)
    chosen, path = model.changed(options), Path(path).expanduser()
    labels, templates, background = kept(labels), kept(templates), kept(background)
    phrases, threshold = check_background(background)
    how = templates, chosen.normalise_prompts
    beside = model.embed_labels(phrases, *how) if phrases else np.zeros((0, model.clip.embed_dim), np.float32)
    known = None if labels is None else model.embed_labels(labels, *how)
    run = make_function(model.method, (height, width), chosen, threshold > 0)

    def segment(
        images: UInt8[Array, "b y x 3"], embeddings: Float[Array, "c d"] | None = None
    ) -> Int32[Array, "b y x"]:
        given = jnp.asarray(known) if embeddings is None else embeddings
        texts = model.make_texts(given, jnp.asarray(beside), chosen.scale, threshold)
        return run(model.method.params, texts, images)

    inputs: dict[str, tuple[str, Any]] = {"images": (f"b, {height}, {width}, 3", np.uint8)}
    if known is None:
        inputs["embeddings"] = (f"c, {model.clip.embed_dim}", np.float32)
    scope = jax_export.SymbolicScope()
    shapes = [
        jax.ShapeDtypeStruct(jax_export.symbolic_shape(shape, scope=scope), dtype) for shape, dtype in inputs.values()
    ]
    exported = jax_export.export(jax.jit(segment), platforms=PLATFORMS)(*shapes)
    about = {
        "jax": jax.__version__,
        "platforms": PLATFORMS,
        "inputs": {name: f"{np.dtype(dtype)} ({shape})" for name, (shape, dtype) in inputs.items()},
        "output": f"int32 (b, {height}, {width})",
        "labels": None if labels is None else list(labels),
        "templates": model.templates if templates is None else resolve_templates(templates),
        "background": background if isinstance(background, str) else phrases or threshold or None,
        "options": dataclasses.asdict(chosen),
    }
    try:
        path.write_bytes(exported.serialize())
        Path(f"{path}.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give a file in a folder that exists") from error
