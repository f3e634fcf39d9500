"""The counts of a model and what is written of them, for classes whose names are no plain text."""

import csv
import json
import re

import numpy as np
import pytest
from numpy_counts import add_image

from zeroseg_jax.evaluate.baselines import best_of_teacher
from zeroseg_jax.evaluate.benchmarks import Example
from zeroseg_jax.evaluate.counts import PixelCounts, class_rows, most_confused
from zeroseg_jax.evaluate.metrics import mean_iou
from zeroseg_jax.evaluate.report import page, tables

NAMES = ("sofa", "<b>cat</b> & *dog* | [x]", "nowhere")


def count(pairs):
    counts = PixelCounts(len(NAMES))
    for truth, prediction in pairs:
        add_image(counts, truth, prediction)
    return counts


@pytest.fixture(scope="module")
def images():
    """Twenty images of two classes, of which the later ones are predicted better."""
    rng = np.random.default_rng(0)
    result = []
    for i in range(20):
        truth = rng.integers(0, 2, (3, 4)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        wrong = rng.random(truth.shape) < 0.6 - i / 40
        result.append((truth, np.where(wrong, 1 - truth, truth).astype(np.int32)))
    return result


@pytest.fixture(scope="module")
def results(images):
    counts = count(images)
    other = count([(t, np.roll(p, 1, axis=1)) for t, p in images])
    settings = {"model": "demo", "labels": list(NAMES), "boundary_dilation": 0.02, "interval": {"level": 0.95}}
    rows = class_rows(counts, NAMES)
    return {
        **{"dataset": "voc", "split": "val", "images": len(images), "groups": {}, "settings": settings},
        **counts.figures({}),
        "iou": {row.name: row.iou for row in rows},
        "compare": {"runs/other": other.figures({}) | {"difference": other.difference(counts)}},
        "baselines": {},
        "teacher": {},
        "confused": most_confused(counts, NAMES),
    }


def test_classes_and_pairs_by_hand():
    truth = np.array([[0, 0, 0, 0, 1, 1, 1, 255]])
    prediction = np.array([[0, 0, 1, -1, 1, 0, 0, 0]], np.int32)
    counts = count([(truth, prediction)])
    sofa, cat, nowhere = class_rows(counts, NAMES)
    assert (sofa.recall, sofa.precision, sofa.iou) == (2 / 4, 2 / 4, 2 / 6)
    assert (cat.pixels, cat.predicted) == (3, 2)
    assert (nowhere.iou, nowhere.recall, nowhere.precision) == (None, None, None)
    pairs = [(p["truth"], p["prediction"], p["share"], p["share_of_all"]) for p in most_confused(counts, NAMES)]
    assert pairs[0] == (NAMES[1], "sofa", 2 / 3, 2 / 7)
    assert set(pairs[1:]) == {("sofa", NAMES[1], 1 / 4, 1 / 7), ("sofa", "", 1 / 4, 1 / 7)}


def test_differences_are_paired(images):
    """The interval of the difference between two models that err alike is narrower than those of the models."""
    counts, other = count(images), count([(t, np.where(t == 1, p, t).astype(np.int32)) for t, p in images])
    gap = other.difference(counts)
    assert gap["miou"] == pytest.approx(float(mean_iou(other.areas) - mean_iou(counts.areas)))
    low, high = gap["interval"]
    assert low < gap["miou"] < high
    unpaired = counts.figures({})["interval"]
    assert high - low < unpaired[1] - unpaired[0]
    assert counts.difference(counts)["interval"] == [0, 0]


def test_the_page_stands_alone_and_escapes_names(images, results, tmp_path):
    counts = count(images)
    groups = page.worst_median_best(counts.image_iou)
    assert [len(group) for group in groups.values()] == [4, 4, 4]
    worst, _, best = groups.values()
    assert counts.image_iou[worst[0]] == counts.image_iou.min()
    assert counts.image_iou[best[0]] == counts.image_iou.max()

    def report_image(i):
        truth, prediction = images[i]
        example = Example(np.zeros((*truth.shape, 3), np.uint8), truth, f"{i}<script>")
        shared = page.ImagePrediction(float(counts.image_iou[i]), prediction, prediction % 2 if i % 2 else None)
        return page.ReportImage(example, {"model": shared, "runs/other": shared})

    pages = {title: [report_image(i) for i in group] for title, group in groups.items()}
    results["baselines"] = {"sliding windows": results["compare"]["runs/other"]}
    losses = [{"step": step, "loss": 3.0 / step, "mae": 1.0} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(loss) + "\n" for loss in losses) + '{"step": 4, "lo')
    page.write_page(
        results, class_rows(counts, NAMES), pages, NAMES, tmp_path, {"sliding windows": "What <windows> are."}
    )
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;cat&lt;/b&gt; &amp; *dog*" in html
    assert "<b>cat" not in html
    assert "<script" not in html
    assert all(address.startswith("data:image/") for address in re.findall(r'(?:src|href)="([^"]*)"', html))
    segments = sum(i % 2 for group in groups.values() for i in group)
    assert html.count("<figure>") == 12 * 4 + 2 * segments
    assert "runs/other, IoU" in html
    assert "What &lt;windows&gt; are." in html
    assert html.count('alt="losses over the steps"') == 1


def test_few_images_are_all_shown():
    assert page.worst_median_best(np.array([0.5, 0.1])) == {"All images, worst first": [1, 0]}


def test_tables(results, tmp_path, capsys):
    text = tables.results_markdown(results)
    rows = [line for line in text.splitlines() if line.startswith("| this model") or line.startswith("| runs/other")]
    assert len(rows) == 2
    assert r"\<b\>cat\</b\> & \*dog\* \| \[x\]" in text
    assert f"{100 * results['miou']:.1f}" in rows[0] + rows[1]
    tables.print_results(results)
    assert "runs/other" in capsys.readouterr().out
    assert tables.teacher_line(results) == "" and "teacher" not in text


def test_the_teachers_best_is_named_everywhere(results, tmp_path, capsys):
    """The terminal, results.md and report.html say what a student has to beat."""
    row = {**results["compare"]["runs/other"], "interval": [0.1, 0.9]}
    titles = {"sliding windows": 0.6, "NACLIP readout": 0.35, "PEARL readout": 0.4, "untrained student": 0.9}
    baselines = {title: row | {"miou": miou} for title, miou in titles.items()}
    assert best_of_teacher({}) == {}
    best = best_of_teacher(baselines)
    assert best == {"best": "sliding windows", "best_readout": "PEARL readout"}
    results = results | {"baselines": baselines, "teacher": best}
    line = (
        "Best mIoU of the teacher without a student: sliding windows, 60.0 [10.0, 90.0]; best of its training-free"
        " readouts: PEARL readout, 40.0 [10.0, 90.0]."
    )
    assert tables.teacher_line(results) == line
    assert line.replace("[", r"\[").replace("]", r"\]") in tables.results_markdown(results)
    tables.print_results(results)
    assert " ".join(capsys.readouterr().out.split()).endswith(line)
    page.write_page(results, [], {}, NAMES, tmp_path)
    assert line in (tmp_path / "report.html").read_text(encoding="utf-8")
    alone = best_of_teacher({title: baselines[title] for title in ("PEARL readout", "NACLIP readout")})
    line = tables.teacher_line(results | {"teacher": alone})
    assert line == "Best mIoU of the teacher without a student: PEARL readout, 40.0 [10.0, 90.0]."


def test_classes_as_csv(images, tmp_path):
    tables.write_class_csv(class_rows(count(images), NAMES), tmp_path / "per_class.csv")
    with (tmp_path / "per_class.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(NAMES)
    assert rows[2]["iou"] == ""
    assert 0 < float(rows[0]["iou"]) < 1
