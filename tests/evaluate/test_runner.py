"""An evaluation on eight devices, and on two processes, gives exactly what it gives on one."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.config import default_config, to_json
from zeroseg_jax.evaluate.benchmarks import open_benchmark
from zeroseg_jax.evaluate.colour_rules import predict_by_pixels
from zeroseg_jax.evaluate.runner import EvaluatedMethod, run_benchmark
from zeroseg_jax.evaluate.zero_shot import evaluate
from zeroseg_jax.segment import load

IMAGES = 34  # the last one of three batches is not full

CHILD = """
import json, os, sys
import jax
if "PROCESS" in os.environ:
    jax.distributed.initialize(os.environ["COORDINATOR"], num_processes=2, process_id=int(os.environ["PROCESS"]))
from zeroseg_jax.config import from_json
from zeroseg_jax.evaluate.zero_shot import evaluate
from zeroseg_jax.segment import load

config = from_json(json.load(open(sys.argv[1])))
results = evaluate(load(config.model), config, sys.argv[2])
print(jax.device_count(), results is None)
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny_clip):
    """Images of two shapes in VOC's layout, and a threshold for the background."""
    root = tmp_path_factory.mktemp("voc")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        shape = (24, 20) if i % 3 else (20, 31)
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(root / f"JPEGImages/{i:02d}.jpg")
        mask = rng.choice(np.array([0, 5, 8, 255], np.uint8), shape)
        Image.fromarray(mask).save(root / f"SegmentationClass/{i:02d}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(f"{i:02d}\n" for i in range(IMAGES)))
    config = default_config()
    config.eval.update(dataset="voc", root=str(root), split="val", vocabulary="voc_groupvit")
    config.eval.update(short_side=0, window=0, top_classes=0, rule="", normalise_prompts=True, baselines=("cells",))
    config.eval.readout = "maskclip"  # whose probabilities are spread wider
    config.model = str(tiny_clip)
    # a threshold that half of the pixels pass
    benchmark = open_benchmark(config.eval)
    images = [benchmark[i].image for i in range(16)]
    results = load(tiny_clip).segment_batch(images, benchmark.classes[1:], background=0.01, readout="maskclip")
    config.eval.background = f"{np.median([np.median(result.probability) for result in results]):.6f}"
    return config


@pytest.fixture(scope="module")
def expected(options, tmp_path_factory):
    return evaluate(load(options.model), options, tmp_path_factory.mktemp("one"))


def start(options, folder, **variables):
    (folder / "config.json").write_text(json.dumps(to_json(options)))
    command = [sys.executable, "-c", CHILD, str(folder / "config.json"), str(folder / "out")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | variables
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child):
    out, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    return out.splitlines()[-1].split()


@pytest.mark.end_to_end
def test_eight_devices_give_what_one_gives(options, expected, tmp_path):
    child = start(options, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert finish(child) == ["8", "False"]
    assert json.loads((tmp_path / "out/results.json").read_text()) == expected


@pytest.mark.end_to_end
def test_two_processes_give_what_one_gives(options, expected, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    children = [start(options, tmp_path, COORDINATOR=coordinator, PROCESS=str(i)) for i in range(2)]
    assert [finish(child) for child in children] == [["2", "False"], ["2", "True"]]
    assert json.loads((tmp_path / "out/results.json").read_text()) == expected


def test_what_is_expected_is_something(expected):
    assert expected["images"] == IMAGES
    assert len(set(expected["threshold_sweep"]["miou"])) > 3
    assert 0 < expected["interval"][0] < expected["miou"] < expected["interval"][1]


def test_images_are_counted_in_order(options):
    benchmark = open_benchmark(options.eval)
    method = EvaluatedMethod(predict_by_pixels(lambda image: np.zeros(image.shape[:2], np.int32)))
    run_benchmark({"zeros": method}, benchmark)
    counted = method.best_counts.per_image.truth.sum(axis=1)
    np.testing.assert_array_equal(counted, [(benchmark[i].mask != 255).sum() for i in range(IMAGES)])
