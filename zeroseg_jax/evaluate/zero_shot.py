"""Zero-shot segmentation of a benchmark by its class names: the model beside the baselines of its teacher."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from ml_collections import ConfigDict

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate import report
from zeroseg_jax.evaluate.baselines import ColourRules, PaintedViews, TiledDenseClip, cells, untrained, windows
from zeroseg_jax.evaluate.benchmarks import Benchmark, Example, Scenes, open_benchmark
from zeroseg_jax.evaluate.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy
from zeroseg_jax.evaluate.question import Predict, Question, make_question
from zeroseg_jax.log import ProgressBar
from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.segment.inference import DenseClipMethod, Method, StudentMethod
from zeroseg_jax.segment.loading import readout_of
from zeroseg_jax.segment.readout import Readout
from zeroseg_jax.segment.segmenter import Segmenter

BASELINES = ("maskclip", "cells", "windows", "untrained", "colours")
"""What `eval.baselines` may hold: the teacher's dense readout, its 3x3 cells, its sliding windows, the student before
training, and (scenes only) the privileged colour rules."""

GALLERY_IMAGES = 8
COLOUR_SCENES = 1000
"""Training scenes that the colour rules are fitted to."""

BATCH = 16


@dataclasses.dataclass
class Contender:
    """A way to segment, in one or several variants, and what is counted of it."""

    predict: Predict
    confusion: dict[str, Int64[np.ndarray, "c c+1"]] = dataclasses.field(default_factory=dict)
    maps: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    """The predictions that the gallery shows."""

    def count(self, batch: Sequence[Example], classes: int, show: Sequence[int]) -> None:
        """Adds a batch; `show` are the positions in it whose predictions are kept."""
        for variant, predictions in self.predict([example.image for example in batch]).items():
            total = self.confusion.setdefault(variant, np.zeros((classes, classes + 1), np.int64))
            self.maps.setdefault(variant, []).extend(predictions[i] for i in show)
            for example, prediction in zip(batch, predictions, strict=True):
                total += confusion_matrix(example.mask, prediction, classes)

    @property
    def best(self) -> str:
        return max(self.confusion, key=lambda variant: mean_iou(self.confusion[variant]))


def evaluate(model: Segmenter, config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Segments the images of `config.eval` by class names and writes results.json and gallery.png into `workdir`.

    Returns what results.json holds. All figures are in [0, 1]: `miou`, `pixel_accuracy`, `iou` of each class (None for
    one in neither the truth nor any prediction; such a class does not count in the mean), `groups` (mean IoU over
    groups of classes, where the benchmark has them) and, for each of the `baselines` that `config.eval.baselines`
    names, its `miou`, `pixel_accuracy` and groups. A baseline with several variants is reported by its best one on
    these very images, which favours it; `variants` has the others. The fields of `config.eval` that are None are the
    model's own.

    Raises:
        InputError: the dataset, or a value of `config.eval`, cannot be used.
    """
    benchmark = open_benchmark(config.eval)
    model = with_options(model, config)
    question = make_question(benchmark, model, config.eval)
    contenders = {"model": Contender(question.ask(model, **{"": {}}))}
    for name, predict in make_baselines(model, benchmark, question, config.eval).items():
        contenders[name] = Contender(predict)

    shown: list[Example] = []
    # spread over the split, since neighbours are often alike
    spread = np.linspace(0, len(benchmark) - 1, min(len(benchmark), GALLERY_IMAGES)).round().astype(int).tolist()
    bar, done = ProgressBar("evaluate", len(benchmark)), 0
    for batch in batches(benchmark):
        show = [i - done for i in spread if done <= i < done + len(batch)]
        for contender in contenders.values():
            contender.count(batch, len(benchmark.classes), show)
        shown += [batch[i] for i in show]
        done += len(batch)
        bar.update(done)
    bar.close()

    confusion = contenders["model"].confusion[""]
    iou = {name: _or_none(x) for name, x in zip(benchmark.classes, class_iou(confusion), strict=True)}
    results = {
        "dataset": benchmark.name,
        "split": config.eval.split,
        "images": len(benchmark),
        "miou": mean_iou(confusion),
        "pixel_accuracy": pixel_accuracy(confusion),
        "groups": {name: mean_iou(confusion, classes) for name, classes in benchmark.groups.items()},
        "iou": iou,
        "baselines": {name: figures(c, benchmark) for name, c in contenders.items() if name != "model"},
        "settings": settings(model, question, config),
    }
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    segments = [r.segments for r in model.segment_batch([e.image for e in shown], question.labels)]
    columns = {name: contender.maps[contender.best] for name, contender in contenders.items()}
    report.gallery(shown, columns, segments, benchmark.classes).save(workdir / "gallery.png")
    report.print_table(results)
    return results


def with_options(model: Segmenter, config: ConfigDict) -> Segmenter:
    """The model with the templates and the readout of `config.eval`."""
    templates = model.templates if config.eval.templates is None else config.eval.templates
    return Segmenter(model.method, model.clip, templates=templates, readout=readout_of(config, model.readout))


def make_baselines(
    model: Segmenter, benchmark: Benchmark, question: Question, options: ConfigDict
) -> dict[str, Predict]:
    """The baselines that `options.baselines` names, each with what it predicts."""
    unknown = [name for name in options.baselines if name not in BASELINES]
    if unknown:
        raise InputError(f"eval.baselines holds {unknown[0]!r}; it may hold {', '.join(BASELINES)}")
    clip, size = model.clip, model.method.image_size
    scale = min(float(np.exp(clip.model.logit_scale[...])), 100.0)
    found: dict[str, Predict] = {}

    def readouts(kind: str, method: Method) -> Predict:
        """Both ways to average the overlapping or interpolated answers of the teacher."""
        kinds = {f"{kind}, mean cosine": {"scale": 0.0}, f"{kind}, mean probability": {"scale": scale}}
        whole = Readout(slide=0.0)  # their cells and windows are shares of the whole image
        return question.ask(Segmenter(method, clip, templates=question.templates, readout=whole), **kinds)

    if "maskclip" in options.baselines and isinstance(clip, ClipEncoder):  # a GroupViT has no such readout
        own = clip.model.config.vision.image_size
        dense: dict[str, Method] = {
            "1x": DenseClipMethod(clip),
            "3x": DenseClipMethod(clip, 3 * own),
            "3x3 tiles": TiledDenseClip(clip, 3),
        }
        found["MaskCLIP readout"] = merge([readouts(kind, method) for kind, method in dense.items()])
    if "cells" in options.baselines:
        found["painted 3x3 cells"] = readouts("3x3", PaintedViews(clip, size, cells(3)))
    if "windows" in options.baselines:
        found["sliding windows"] = readouts("1/2, 1/3 and 1/4", PaintedViews(clip, size, windows()))
    if model.readout.rename:
        alone = Segmenter(model.method, clip, readout=dataclasses.replace(model.readout, rename=""))
        found["student, not renamed"] = question.ask(alone, **{"": {}})
    if "untrained" in options.baselines and isinstance(model.method, StudentMethod):
        found["untrained student"] = question.ask(untrained(model), **{"": {}})
    if "colours" in options.baselines and isinstance(benchmark, Scenes):
        rules = fit_colours(options)
        found["nearest class colour (privileged)"] = lambda images: {"": [rules.nearest(i) for i in images]}
        found["likeliest class of the colour (privileged)"] = lambda images: {"": [rules.likeliest(i) for i in images]}
    return found


def fit_colours(options: ConfigDict) -> ColourRules:
    """The colour rules, fitted to training scenes and their masks."""
    training = Scenes(options.root, options.dataset.partition("/")[2] or "default", "train", COLOUR_SCENES)
    return ColourRules(len(training.classes)).fit(training[i][:2] for i in range(len(training)))


def merge(parts: Sequence[Predict]) -> Predict:
    """One way to segment with the variants of several."""
    return lambda images: {name: maps for part in parts for name, maps in part(images).items()}


def batches(benchmark: Benchmark) -> Iterator[list[Example]]:
    for start in range(0, len(benchmark), BATCH):
        yield [benchmark[i] for i in range(start, min(start + BATCH, len(benchmark)))]


def figures(contender: Contender, benchmark: Benchmark) -> dict[str, Any]:
    """The figures of a baseline's best variant, and the mean IoU of all of them."""
    confusion = contender.confusion[contender.best]
    found: dict[str, Any] = {"miou": mean_iou(confusion), "pixel_accuracy": pixel_accuracy(confusion)}
    found |= {name: mean_iou(confusion, classes) for name, classes in benchmark.groups.items()}
    if len(contender.confusion) > 1:
        variants = {name: mean_iou(counts) for name, counts in contender.confusion.items()}
        found |= {"variant": contender.best, "variants": variants}
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
        "readout": dataclasses.asdict(model.readout),
    }


def _or_none(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
