"""Zero-shot segmentation of a benchmark by its class names: the model beside others and its teacher's baselines."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.baselines import make_baselines
from zeroseg_jax.evaluate.benchmarks import Benchmark, Example, open_benchmark
from zeroseg_jax.evaluate.counts import LEVEL, RESAMPLES, class_rows, confused
from zeroseg_jax.evaluate.metrics import DILATION, mean_iou
from zeroseg_jax.evaluate.protocol import Question, make_question, protocol_of
from zeroseg_jax.evaluate.report import page, tables
from zeroseg_jax.evaluate.runner import Contender, count_all
from zeroseg_jax.evaluate.thresholds import ThresholdSweep, draw_sweeps
from zeroseg_jax.segment.loading import load
from zeroseg_jax.segment.segmenter import Segmenter

GALLERY_IMAGES = 8


def evaluate(
    model: Segmenter,
    config: ConfigDict,
    workdir: str | Path,
    others: Mapping[str, Segmenter] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """Segments the images of `config.eval` by class names, and writes what it finds into `workdir`.

    All devices of all processes share the images, whatever the mesh of the training; the first process writes
    results.json, results.md, per_class.csv, gallery.png, report.html and, where the background is a
    threshold, threshold_sweep.png. `others` (`load_compared`) are asked about the same images.

    Returns what results.json holds, or None in the other processes. All figures are in [0, 1]: `miou`,
    `pixel_accuracy`, `frequency_weighted_iou`, `boundary_iou`, the bootstrap `interval` of the mIoU over the images,
    `iou` of each class (None for one in neither the truth nor any prediction; such a class does not count in the mean),
    `groups` (mean IoU over groups of classes, where the benchmark has them), and `confused`, the pairs of classes that
    are mistaken most. The same figures are there for each of `compare` and of the `baselines` that
    `config.eval.baselines` names, with the `difference` of their mIoU to the model's and its paired interval. A
    baseline with several variants is reported by its best one on these very images, which favours it; `variants` has
    the others. `threshold_sweep` has the mIoU of the model, and of each of `compare`, at 101 thresholds. The fields of
    `config.eval` that are None are each model's own.

    Raises:
        InputError: the dataset, or a value of `config.eval`, cannot be used.
    """
    benchmark, workdir = open_benchmark(config.eval), Path(workdir)
    models = {name: with_options(m, benchmark, config) for name, m in {"model": model, **others}.items()}
    questions = {name: make_question(benchmark, m, config.eval) for name, m in models.items()}
    asked = settings(models["model"], questions["model"], config).items()
    logging.info("%s", "; ".join(f"{name} {value}" for name, value in asked if name not in ("labels", "interval")))
    contenders = {name: contender(m, questions[name], len(benchmark.classes)) for name, m in models.items()}
    for name, predict in make_baselines(models["model"], benchmark, questions["model"], config.eval).items():
        contenders[name] = Contender(predict)
    count_all(contenders, benchmark)
    if jax.process_index() != 0:  # all have counted, one tells
        return None

    tally = contenders["model"].tally
    rows = class_rows(tally, benchmark.classes)
    figures = tally.figures(benchmark.groups)
    results = {
        "dataset": benchmark.name,
        "split": config.eval.split,
        "images": len(benchmark),
        **{name: x for name, x in figures.items() if name not in benchmark.groups},
        "groups": {name: figures[name] for name in benchmark.groups},
        "iou": {row.name: row.iou for row in rows},
        "compare": {},
        "baselines": {},
        "confused": confused(tally, benchmark.classes),
        "settings": settings(models["model"], questions["model"], config),
    }
    for name, c in contenders.items():
        if name in others:
            own = {"settings": settings(models[name], questions[name], config) | {"model": name}}
            results["compare"][name] = against(c, contenders["model"], benchmark) | own
        elif name != "model":
            results["baselines"][name] = against(c, contenders["model"], benchmark)
    sweeps = {name: c.sweep.figures() for name, c in contenders.items() if c.sweep and c.sweep.pixels}
    for name, sweep in sweeps.items():
        (results if name == "model" else results["compare"][name])["threshold_sweep"] = sweep

    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (workdir / "results.md").write_text(tables.markdown(results), encoding="utf-8")
    tables.write_classes(rows, workdir / "per_class.csv")
    if sweeps:
        draw_sweeps({tables.TITLE if n == "model" else n: s for n, s in sweeps.items()}, workdir / tables.SWEEP)
    draw_gallery(contenders, models["model"], questions["model"], benchmark).save(workdir / "gallery.png")
    shown = choose_images(contenders, models, questions, benchmark)
    page.write(results, rows, shown, benchmark.classes, workdir)
    tables.print_table(results)
    return results


def load_compared(config: ConfigDict) -> dict[str, Segmenter]:
    """The models of `config.eval.compare`, by their sources.

    Raises:
        InputError: a source that is there twice, or that `zeroseg_jax.load` cannot load.
    """
    sources = [source.strip() for source in config.eval.compare.split(",") if source.strip()]
    for source in sources:
        if sources.count(source) > 1 or source == "model":
            problem = "is the name of the model itself" if source == "model" else "is there twice"
            raise InputError(f"eval.compare={config.eval.compare}: {source!r} {problem}; name each other model once")
    found = {}
    for source in sources:
        try:
            found[source] = load(source)
        except InputError as error:
            raise InputError(f"eval.compare={config.eval.compare}: {error}") from error
    return found


def with_options(model: Segmenter, benchmark: Benchmark, config: ConfigDict) -> Segmenter:
    """The model with the templates and the readout of `config.eval`, or else of the vocabulary."""
    templates = model.templates if config.eval.templates is None else config.eval.templates
    readout = protocol_of(benchmark, config, model.readout)
    return Segmenter(model.method, model.clip, templates=templates, readout=readout)


def contender(model: Segmenter, question: Question, classes: int) -> Contender:
    """A model as it is, with a sweep where the background is a threshold."""
    found, hidden = Contender(question.ask(model, **{"": {}})), int(question.values[-1])
    if isinstance(question.background, float) and hidden >= 0:
        found.sweep = ThresholdSweep(classes, hidden, question.background)
    return found


def against(each: Contender, model: Contender, benchmark: Benchmark) -> dict[str, Any]:
    """The figures of a contender's best variant, its difference to the model, and the mean IoU of all variants."""
    found = each.tally.figures(benchmark.groups) | {"difference": each.tally.difference(model.tally)}
    if len(each.tallies) > 1:
        variants = {name: float(mean_iou(tally.areas)) for name, tally in each.tallies.items()}
        found |= {"variant": each.best, "variants": variants}
    return found


def settings(model: Segmenter, question: Question, config: ConfigDict) -> dict[str, Any]:
    """What the figures depend on beside the model and the images."""
    return {
        **{key: config.eval[key] for key in ("root", "limit")},
        "model": config.model,
        "image_size": model.method.image_size,
        "patch_size": model.method.patch_size,
        "vocabulary": question.vocabulary,
        "labels": list(question.labels),
        "templates": list(question.templates),
        "background": question.background,
        "readout": dataclasses.asdict(model.readout) | {"scales": list(model.readout.scales)},
        "boundary_dilation": DILATION,
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "method": "percentile bootstrap over images"},
    }


def segment_maps(model: Segmenter, question: Question, examples: Sequence[Example]) -> list[np.ndarray] | None:
    """The segments of each image; None for a method whose segments are its patches."""
    encoded = model.encode_batch([example.image for example in examples])
    if encoded[0].assignment is None:
        return None
    return [result.segments for result in model.label(encoded, question.labels, templates=question.templates)]


def draw_gallery(
    contenders: Mapping[str, Contender], model: Segmenter, question: Question, benchmark: Benchmark
) -> Any:
    """A few images, spread over the split since neighbours are often alike, as every contender sees them."""
    spread = np.linspace(0, len(benchmark) - 1, min(len(benchmark), GALLERY_IMAGES)).round().astype(int).tolist()
    examples = [benchmark[i] for i in spread]
    columns = {name: each.maps(examples) for name, each in contenders.items()}
    return tables.gallery(examples, columns, segment_maps(model, question, examples), benchmark.classes)


def choose_images(
    contenders: Mapping[str, Contender],
    models: Mapping[str, Segmenter],
    questions: Mapping[str, Question],
    benchmark: Benchmark,
) -> dict[str, list[page.Shown]]:
    """The worst, median and best images of the model, as each of `models` sees them."""
    iou = {name: contenders[name].tally.image_iou for name in models}
    groups = page.worst_median_best(iou["model"])
    indices = [i for group in groups.values() for i in group]
    examples = [benchmark[i] for i in indices]
    maps = {name: contenders[name].maps(examples) for name in models}
    segments = {name: segment_maps(m, questions[name], examples) for name, m in models.items()}
    shown = {}
    for at, i in enumerate(indices):
        seen = {
            name: page.Seen(float(iou[name][i]), maps[name][at], None if parts is None else parts[at])
            for name, parts in segments.items()
        }
        shown[i] = page.Shown(examples[at], seen)
    return {title: [shown[i] for i in group] for title, group in groups.items()}
