"""`--mode=check`: finds all faults of a dataset before it is used."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.masks import MaskPairs, UnknownValues
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.progress import ProgressBar


def check(config: ConfigDict) -> dict[str, Any]:
    """Reads all of the evaluation dataset of `config` and prints a report.

    Returns:
        `pairs`: number of images with a usable mask; `sizes`: number of images of each "WIDTHxHEIGHT"; `pixels`:
        number of pixels of each class; `ignored`: number of pixels that do not count; `absent`: classes without a
        pixel; `unknown`: number of masks with each value that is no class; `missing`: missing files; `problems`: one
        sentence for each unusable image; `notes`: other remarks of the reader, such as the order of the classes.

    Raises:
        InputError: the dataset cannot be opened, or has problems. All problems are printed first.
    """
    from zeroseg_jax.evaluate.benchmarks import open_benchmark  # which imports this module

    benchmark = open_benchmark(config.eval, probe=False)
    counts, sizes, unknown = np.zeros(256, np.int64), Counter[str](), Counter[int]()
    problems, pairs, turned = list[str](), 0, 0
    bar = ProgressBar("check", len(benchmark))
    for i in range(len(benchmark)):
        try:
            example = benchmark[i]
        except InputError as error:
            problems.append(str(error))
            if isinstance(error, UnknownValues):
                unknown.update(error.values)
        else:
            pairs += 1
            sizes[f"{example.mask.shape[1]}x{example.mask.shape[0]}"] += 1
            counts += np.bincount(example.mask.ravel(), minlength=256)
            turned += isinstance(benchmark, MaskPairs) and benchmark.orientation(i) > 1
        bar.update(i + 1)
    bar.close()
    missing, notes = (benchmark.missing(), benchmark.notes) if isinstance(benchmark, MaskPairs) else ((), ())
    if turned:
        notes = (
            *notes,
            f"{turned} images are turned by their EXIF orientation, and their masks with them, but for masks that have"
            " the size of the turned image only",
        )
    report = {
        "dataset": benchmark.name,
        "pairs": pairs,
        "sizes": dict(sizes.most_common()),
        "pixels": {name: int(count) for name, count in zip(benchmark.classes, counts, strict=False)},
        "ignored": int(counts[IGNORE]),
        "absent": [name for name, count in zip(benchmark.classes, counts, strict=False) if not count],
        "unknown": dict(sorted(unknown.items())),
        "missing": [str(path) for path in missing],
        "problems": problems,
        "notes": list(notes),
    }
    _print_report(report, len(benchmark))
    if problems:
        raise InputError(f"{len(problems)} of {len(benchmark)} images cannot be used; the first: {problems[0]}")
    return report


def _print_report(report: Mapping[str, Any], images: int) -> None:
    console = Console()

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    say(f"{report['pairs']} of {images} images of {report['dataset']} have a good mask")
    sizes = list(report["sizes"].items())
    listed = ", ".join(f"{size} ({count})" for size, count in sizes[:8])
    say(f"{len(sizes)} sizes: {listed}{', ...' if len(sizes) > 8 else ''}")
    total = max(1, sum(report["pixels"].values()))
    table = Table("value", "class", "pixels", "share")
    for value, (name, count) in enumerate(report["pixels"].items()):
        table.add_row(str(value), escape(name), f"{count:,}", f"{count / total:.1%}")
    table.add_row(str(IGNORE), "(does not count)", f"{report['ignored']:,}", "")
    console.print(table)
    if report["absent"]:
        say(f"classes without a pixel: {len(report['absent'])}")
    if report["unknown"]:
        say("values that are no class: " + ", ".join(f"{v} (masks: {n})" for v, n in report["unknown"].items()))
    if report["missing"]:
        say(f"missing files: {len(report['missing'])}")
    for sentence in (*report["notes"], *report["problems"]):
        say(sentence)
