"""The segment function as a file that runs without this package: StableHLO for JAX, or ONNX."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Sequence
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
from zeroseg_jax.segment.labelling.scoring import make_texts
from zeroseg_jax.segment.prompts import Background, Templates, check_background, resolve_templates, reusable
from zeroseg_jax.segment.segmenter import Segmenter
from zeroseg_jax.storage import disk_path

PLATFORMS = ("cpu", "cuda", "tpu")
PACKAGES = {"jax": ("flatbuffers", "export"), "onnx": ("jax2onnx", "onnx")}
"""What each format needs: the module, and the extra that installs it."""


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
    """Writes the function of `Segmenter.segment_fn`, weights included.

    A `path` that ends in .onnx is written as ONNX, for batches of any size: uint8 (B, H, W, 3) -> int32 (B, H, W). The
    input is named `images`, and the output `label_map`. The file runs in onnxruntime and in browsers (onnxruntime-web),
    without JAX and without this package. It takes the images of a batch one after the other. Writing it needs Python
    3.11, because the converter, jax2onnx, cannot read what JAX 0.12 traces.

    A `path` that ends in .jax is written as a `jax.export.Exported`, for batches of any size on CPU, GPU and TPU. It
    needs jax and flatbuffers but not this package:

        segment = jax.export.deserialize(open(path, "rb").read()).call
        label_map = segment(images)  # uint8 (B, H, W, 3) -> int32 (B, H, W)

    Without `labels`, the function also takes the embeddings of the labels (`Segmenter.embed_labels`):

        label_map = segment(images, embeddings)  # float32 (C, D), for any number of labels

    ONNX needs the labels. PATH.json lists the shapes, the labels and the options.

    Args:
        path: where it is written, such as "segment.jax" or "segment.onnx"; the folder must exist.
        image_size: (height, width) of the images, or the side of squares; None is the model's own.
        labels, templates, background, options: as for `Segmenter.segment`.

    Raises:
        InputError: a package is not installed, a label or option cannot be used, or `path` has another ending or cannot
            be written.
    """
    path = disk_path(path)
    form = path.suffix.lower().removeprefix(".")
    if form not in PACKAGES:
        raise InputError(f"{path.name} cannot be exported; give a name that ends in .jax or .onnx")
    package, extra = PACKAGES[form]
    if find_spec(package) is None:
        raise InputError(f"exporting needs the package {package}; pip install {package}, or zeroseg_jax[{extra}]")
    if form == "onnx" and labels is None:
        raise InputError(f"{path.name} needs labels; only a file of StableHLO, such as x.jax, takes them when it runs")
    height, width = read_size(model.method.image_size if image_size is None else image_size)
    chosen = model.changed(options)
    labels, templates, background = reusable(labels), reusable(templates), reusable(background)
    phrases, threshold = check_background(background)
    prompts = templates, chosen.normalise_prompts
    none = np.zeros((0, model.clip.embed_dim), np.float32)
    phrase_embeddings = model.embed_labels(phrases, *prompts) if phrases else none
    label_embeddings = None if labels is None else model.embed_labels(labels, *prompts)
    run = make_function(model.method, (height, width), chosen, threshold > 0)

    def segment(
        images: UInt8[Array, "b y x 3"], embeddings: Float[Array, "c d"] | None = None
    ) -> Int32[Array, "b y x"]:
        embeddings = jnp.asarray(label_embeddings) if embeddings is None else embeddings
        texts = make_texts(embeddings, jnp.asarray(phrase_embeddings), chosen.scale, threshold, model.logit_scale)
        return run(model.method.params, texts, images)

    inputs: dict[str, tuple[str, Any]] = {"images": (f"b, {height}, {width}, 3", np.uint8)}
    if label_embeddings is None:
        inputs["embeddings"] = (f"c, {model.clip.embed_dim}", np.float32)
    about = {
        "jax": jax.__version__,
        "platforms": PLATFORMS if form == "jax" else ("onnxruntime",),
        "inputs": {name: f"{np.dtype(dtype)} ({shape})" for name, (shape, dtype) in inputs.items()},
        "output": f"int32 (b, {height}, {width})",
        "labels": None if labels is None else list(labels),
        "templates": model.templates if templates is None else resolve_templates(templates),
        "background": background if isinstance(background, str) else phrases or threshold or None,
        "options": dataclasses.asdict(chosen),
    }
    content = _onnx(segment, height, width) if form == "onnx" else _stable_hlo(segment, list(inputs.values()))
    try:
        path.write_bytes(content)
        Path(f"{path}.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give a file in a folder that exists") from error


def _stable_hlo(function: Callable[..., Any], inputs: Sequence[tuple[str, Any]]) -> bytes:
    """A serialised `jax.export.Exported` for inputs of these shapes, which may have symbolic sizes, and dtypes."""
    scope = jax_export.SymbolicScope()
    shapes = [jax.ShapeDtypeStruct(jax_export.symbolic_shape(shape, scope=scope), dtype) for shape, dtype in inputs]
    return bytes(jax_export.export(jax.jit(function), platforms=PLATFORMS)(*shapes).serialize())


def _onnx(function: Callable[..., Any], height: int, width: int) -> bytes:
    """A serialised ONNX model for batches of images of that size."""
    for package in ("jax2onnx", "onnx_ir"):  # they warn of parts that are not needed here
        logging.getLogger(package).setLevel(logging.ERROR)
    from jax2onnx import to_onnx

    model = to_onnx(
        lambda images: function(images),
        [jax.ShapeDtypeStruct((1, height, width, 3), np.uint8)],
        model_name="zeroseg_jax",
        input_names=["single_image"],
        output_names=["single_map"],
    )
    return _over_batch(model, height, width).SerializeToString()


def _over_batch(model: Any, height: int, width: int) -> Any:
    """The ONNX model that runs `model`, which takes one image, for each image of a batch.

    jax2onnx cannot convert the function for a batch of unknown size. So ONNX's loop `Scan` is put around it.
    """
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.UINT8, (height, width, 3))
    label_map = helper.make_tensor_value_info("image_map", TensorProto.INT32, (height, width))
    axis = helper.make_tensor("batch_axis", TensorProto.INT64, (1,), (0,))
    body = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["image", "batch_axis"], ["single_image"]),
            *model.graph.node,
            helper.make_node("Squeeze", ["single_map", "batch_axis"], ["image_map"]),
        ],
        "one_image",
        [image],
        [label_map],
        [axis, *model.graph.initializer],
    )
    loop = helper.make_node("Scan", ["images"], ["label_map"], body=body, num_scan_inputs=1)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ("batch", height, width, 3))
    label_maps = helper.make_tensor_value_info("label_map", TensorProto.INT32, ("batch", height, width))
    graph = helper.make_graph([loop], "zeroseg_jax", [images], [label_maps])
    return helper.make_model(
        graph, functions=model.functions, opset_imports=model.opset_import, ir_version=model.ir_version
    )
