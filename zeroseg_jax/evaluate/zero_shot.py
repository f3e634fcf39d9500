"""Zero-shot segmentation of a benchmark by its class names: the model, other models and the baselines."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.baselines import DESCRIPTIONS, best_of_teacher, make_baselines
from zeroseg_jax.evaluate.benchmarks import Benchmark, Example, open_benchmark
from zeroseg_jax.evaluate.counts import LEVEL, RESAMPLES, class_rows, most_confused
from zeroseg_jax.evaluate.metrics import DILATION, mean_iou
from zeroseg_jax.evaluate.protocol import EvaluationProtocol, inference_options, make_protocol
from zeroseg_jax.evaluate.report import page, tables
from zeroseg_jax.evaluate.runner import EvaluatedMethod, run_benchmark
from zeroseg_jax.evaluate.thresholds import ThresholdSweep, draw_sweeps
from zeroseg_jax.segment.io import load
from zeroseg_jax.segment.segmenter import Segmenter
from zeroseg_jax.storage import AnyPath, save_picture, to_path

GALLERY_IMAGES = 8


def evaluate(
    model: Segmenter,
    config: ConfigDict,
    workdir: str | AnyPath,
    others: Mapping[str, Segmenter] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """Segments the images of `config.eval` by class names and writes the results into `workdir`.

    All devices of all processes share the images, whatever the mesh of the training. The first process writes
    results.json, results.md, per_class.csv, gallery.png, report.html and, if the background is a threshold,
    threshold_sweep.png. `others` (`load_compared`) segment the same images. A field of `config.eval` that is None means
    each model's own value.

    Returns:
        The content of results.json, or None in all processes but the first. Figures are in [0, 1]: `miou`,
        `pixel_accuracy`, `frequency_weighted_iou`, `boundary_iou`, the bootstrap `interval` of the mIoU, `iou` of each
        class (None for a class in neither the truth nor the predictions, which the mean leaves out), `groups` (mean
        IoU over groups of classes, if the benchmark has groups) and `confused` (`counts.most_confused`). `compare` and
        `baselines` hold the same figures for the other models and for the baselines of `config.eval.baselines`, with
        the `difference` of their mIoU to the model's and its paired interval. A baseline with several variants is
        reported by the best one on these images, which favours it; `variants` has the mIoU of all. `teacher` has the
        titles of the teacher's best baselines (`baselines.best_of_teacher`). `threshold_sweep` has the mIoU at 101
        thresholds, of the model and of each of `compare`.

    Raises:
        InputError: the dataset, or a value of `config.eval`, cannot be used.
    """
    benchmark, workdir = open_benchmark(config.eval), to_path(workdir)
    models = {name: with_eval_options(m, benchmark, config) for name, m in {"model": model, **others}.items()}
    protocols = {name: make_protocol(benchmark, m, config.eval) for name, m in models.items()}
    model, protocol = models["model"], protocols["model"]
    logged = settings(model, protocol, config).items()
    logging.info("%s", "; ".join(f"{name} {value}" for name, value in logged if name not in ("labels", "interval")))
    methods = {name: evaluated_model(m, protocols[name], len(benchmark.classes)) for name, m in models.items()}
    for name, predict in make_baselines(model, benchmark, protocol, config.eval).items():
        methods[name] = EvaluatedMethod(predict)
    run_benchmark(methods, benchmark)
    if jax.process_index() != 0:  # All processes have the counts, and one reports them.
        return None

    counts = methods["model"].best_counts
    rows = class_rows(counts, benchmark.classes)
    figures = counts.figures(benchmark.groups)
    results = {
        "dataset": benchmark.name,
        "split": config.eval.split,
        "images": len(benchmark),
        **{name: x for name, x in figures.items() if name not in benchmark.groups},
        "groups": {name: figures[name] for name in benchmark.groups},
        "iou": {row.name: row.iou for row in rows},
        "compare": {},
        "baselines": {},
        "confused": most_confused(counts, benchmark.classes),
        "settings": settings(model, protocol, config),
    }
    for name, method in methods.items():
        if name in others:
            method_settings = settings(models[name], protocols[name], config) | {"model": name}
            row = compared_figures(method, methods["model"], benchmark)
            results["compare"][name] = row | {"settings": method_settings}
        elif name != "model":
            results["baselines"][name] = compared_figures(method, methods["model"], benchmark)
    results["teacher"] = best_of_teacher(results["baselines"])
    sweeps = {name: m.sweep.figures() for name, m in methods.items() if m.sweep and m.sweep.pixels}
    for name, sweep in sweeps.items():
        (results if name == "model" else results["compare"][name])["threshold_sweep"] = sweep

    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (workdir / "results.md").write_text(tables.results_markdown(results), encoding="utf-8")
    tables.write_class_csv(rows, workdir / "per_class.csv")
    if sweeps:
        titled = {tables.MODEL_TITLE if name == "model" else name: sweep for name, sweep in sweeps.items()}
        draw_sweeps(titled, workdir / tables.SWEEP_FILE)
    save_picture(draw_gallery(methods, model, protocol, benchmark), workdir / "gallery.png")
    shown = choose_report_images(methods, models, protocols, benchmark)
    page.write_page(results, rows, shown, benchmark.classes, workdir, DESCRIPTIONS)
    tables.print_results(results)
    return results


def load_compared(config: ConfigDict) -> dict[str, Segmenter]:
    """The models of `config.eval.compare`, by their sources.

    Raises:
        InputError: a source is named twice, or `zeroseg_jax.load` cannot load it.
    """
    sources = [source.strip() for source in config.eval.compare.split(",") if source.strip()]
    for source in sources:
        if sources.count(source) > 1 or source == "model":
            problem = "is the name of the model itself" if source == "model" else "is there twice"
            raise InputError(f"eval.compare={config.eval.compare}: {source!r} {problem}; name each other model once")
    models = {}
    for source in sources:
        try:
            models[source] = load(source)
        except InputError as error:
            raise InputError(f"eval.compare={config.eval.compare}: {error}") from error
    return models


def with_eval_options(model: Segmenter, benchmark: Benchmark, config: ConfigDict) -> Segmenter:
    """The model with the templates and options of `config.eval`, or else of the vocabulary.

    Raises:
        InputError: a value of `config.eval` cannot be used. For a readout that the model does not have, the sentence
            names those that it has.
    """
    if config.eval.readout is not None:
        model.changed({"readout": config.eval.readout})
    templates = model.templates if config.eval.templates is None else config.eval.templates
    options = inference_options(benchmark, config, model.options)
    return Segmenter(model.method, model.clip, templates=templates, options=options)


def evaluated_model(model: Segmenter, protocol: EvaluationProtocol, classes: int) -> EvaluatedMethod:
    """A model with its options, and with a threshold sweep if the background is a threshold."""
    method, background_class = EvaluatedMethod(protocol.predictor(model)), int(protocol.class_of_label[-1])
    if protocol.threshold and background_class >= 0:
        method.sweep = ThresholdSweep(classes, background_class, protocol.threshold)
    return method


def compared_figures(method: EvaluatedMethod, model: EvaluatedMethod, benchmark: Benchmark) -> dict[str, Any]:
    """Figures of the best variant, its difference to the model, and the mean IoU of all variants if there are more."""
    counts = method.best_counts
    figures = counts.figures(benchmark.groups) | {"difference": counts.difference(model.best_counts)}
    if len(method.counts) > 1:
        variants = {name: float(mean_iou(counts.areas)) for name, counts in method.counts.items()}
        figures |= {"variant": method.best_variant, "variants": variants}
    return figures


def settings(model: Segmenter, protocol: EvaluationProtocol, config: ConfigDict) -> dict[str, Any]:
    """Everything besides the weights and the images that the figures depend on."""
    return {
        **{key: config.eval[key] for key in ("root", "limit")},
        "model": config.model,
        "image_size": model.method.image_size,
        "patch_size": model.method.patch_size,
        "vocabulary": protocol.vocabulary,
        "labels": list(protocol.labels),
        "templates": list(protocol.templates),
        "background": protocol.background,
        "readout": dataclasses.asdict(model.options) | {"scales": list(model.options.scales)},
        "boundary_dilation": DILATION,
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "method": "percentile bootstrap over images"},
    }


def segment_maps(
    model: Segmenter, protocol: EvaluationProtocol, examples: Sequence[Example]
) -> list[np.ndarray] | None:
    """The segment map of each image, int32 (h, w). None for a method whose segments are its patches."""
    encoded = model.encode_batch([example.image for example in examples])
    if encoded[0].assignment is None:
        return None
    results = model.label(encoded, protocol.labels, templates=protocol.templates)
    return [result.segments for result in results]


def draw_gallery(
    methods: Mapping[str, EvaluatedMethod], model: Segmenter, protocol: EvaluationProtocol, benchmark: Benchmark
) -> Image.Image:
    """A few images with the class maps of every method."""
    # Spread over the split, because neighbours are often alike.
    indices = np.linspace(0, len(benchmark) - 1, min(len(benchmark), GALLERY_IMAGES)).round().astype(int).tolist()
    examples = [benchmark[i] for i in indices]
    class_maps = {name: method.class_maps(examples) for name, method in methods.items()}
    return tables.draw_gallery(examples, class_maps, segment_maps(model, protocol, examples), benchmark.classes)


def choose_report_images(
    methods: Mapping[str, EvaluatedMethod],
    models: Mapping[str, Segmenter],
    protocols: Mapping[str, EvaluationProtocol],
    benchmark: Benchmark,
) -> dict[str, list[page.ReportImage]]:
    """The worst, median and best images of the model, each with the predictions of all `models`."""
    image_iou = {name: methods[name].best_counts.image_iou for name in models}
    groups = page.worst_median_best(image_iou["model"])
    indices = [i for group in groups.values() for i in group]
    examples = [benchmark[i] for i in indices]
    class_maps = {name: methods[name].class_maps(examples) for name in models}
    segments = {name: segment_maps(m, protocols[name], examples) for name, m in models.items()}
    images = {}
    for position, i in enumerate(indices):
        predictions = {
            name: page.ImagePrediction(
                float(image_iou[name][i]),
                class_maps[name][position],
                None if maps is None else maps[position],
            )
            for name, maps in segments.items()
        }
        images[i] = page.ReportImage(examples[position], predictions)
    return {title: [images[i] for i in group] for title, group in groups.items()}
