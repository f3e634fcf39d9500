# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluate zero-shot
#
# The model gets the class names of a data set and nothing else. It never saw a mask. The figure is the *mIoU*: for each
# class, the pixels that truth and prediction share, divided by the pixels of either; then the mean over the classes.

# %%
# Installs the package where it is missing: from this clone of the project, or else from the package index.
import os
from importlib.util import find_spec

if not find_spec("zeroseg_jax"):
    SOURCE = ".." if os.path.exists("../setup.cfg") else "zeroseg_jax"
    # %pip install -q "{SOURCE}[notebooks]"

# %% tags=["parameters"]
MODEL = "demo"  # the tiny CLIP that the package ships; or "../runs/demo", a folder, or a hub id
TEMPLATES = None  # the model's own, or "photo", "clip7", "imagenet80", or texts of your own with {} in them
SCENES = 16

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from absl import logging
from PIL import Image

from zeroseg_jax import draw
from zeroseg_jax.config import load_config
from zeroseg_jax.train import evaluate

logging.set_verbosity(logging.ERROR)
workdir = Path(tempfile.mkdtemp(prefix="evaluate-"))

# %% [markdown]
# ## The table
#
# These are scenes that the package draws, because a benchmark has to be downloaded first. For PASCAL VOC set
# `config.eval.dataset = "voc"`, `config.eval.root = "VOCdevkit"` and `config.eval.vocabulary = "voc_zeroseg"`, which is
# the paper's protocol. `docs/data.md` says where each benchmark comes from.
#
# The table has the model and its *baselines*: other ways to read out the same CLIP, and rules that know the training
# masks but see only colours. The interval says how much the figure would change with other images.

# %%
config = load_config("../configs/eval.py")
config.eval.dataset = "scenes/tiny"
config.eval.split = "test"
config.eval.limit = SCENES
config.eval.templates = TEMPLATES

results = evaluate(config, workdir, MODEL)

# %% [markdown]
# ## The pictures
#
# One image in each row: the image, the truth, the model, the baselines.

# %%
Image.open(workdir / "gallery.png")

# %% [markdown]
# ## Model and baselines, and the classes

# %%
scores = {"this model": results["miou"]} | {name: row["miou"] for name, row in results["baselines"].items()}
scores = dict(sorted(scores.items(), key=lambda item: item[1]))
classes = {name: iou for name, iou in results["iou"].items() if iou is not None}

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", width_ratios=[1, 1.6])
colours = ["#D55E00" if name == "this model" else "#56B4E9" for name in scores]
bars = left.barh(list(scores), [100 * miou for miou in scores.values()], color=colours)
left.bar_label(bars, fmt="%.0f", padding=3)
left.set_title("mIoU, percent")

palette = dict(zip(results["iou"], draw.palette(len(results["iou"])) / 255, strict=True))
right.bar(list(classes), [100 * iou for iou in classes.values()], color=[palette[name] for name in classes])
right.tick_params(axis="x", rotation=60)
right.set_title("IoU of this model on each class, percent")
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## Everything else
#
# `report.html` in the same folder has the worst, median and best images, every class, and what is taken for what.

# %%
print(*sorted(path.name for path in workdir.glob("[!.]*")), sep="\n")
