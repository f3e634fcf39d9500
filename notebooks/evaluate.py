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
# Class names are all that the model is told. Beside it stand other readouts of the same teacher, and rules that know
# the training masks but see only colours.

# %%
import os
from importlib.util import find_spec

REPOSITORY = ""  # for Colab: the address to clone this project from; in a clone of it nothing is needed

if REPOSITORY and not os.path.isdir("../configs"):
    # !git clone -q --depth 1 {REPOSITORY} repository
    os.chdir("repository/notebooks")
if not find_spec("zeroseg_jax"):
    print("installing zeroseg_jax ...")
    # %pip install -q "..[notebooks]"

# %% tags=["parameters"]
MODEL = "demo"  # the shipped tiny CLIP by MaskCLIP's readout; or "../runs/demo", or a hub id
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

logging.set_verbosity(logging.ERROR)  # TFDS recommends OpenCV, which is not needed here
workdir = Path(tempfile.mkdtemp(prefix="evaluate-"))

# %% [markdown]
# ## The table
#
# For a real benchmark set `config.eval.dataset = "voc"`, `.root` and `.split`; for all 300 test scenes `"scenes"`.

# %%
config = load_config("../configs/eval.py")
config.eval.dataset = "scenes/tiny"
config.eval.split = "test"
config.eval.limit = SCENES
config.eval.templates = TEMPLATES

results = evaluate(config, workdir, MODEL)

# %% [markdown]
# ## The pictures

# %%
Image.open(workdir / "gallery.png")

# %% [markdown]
# ## The bars

# %%
contenders = {"this model": results["miou"]} | {name: row["miou"] for name, row in results["baselines"].items()}
contenders = dict(sorted(contenders.items(), key=lambda item: item[1]))
classes = {name: iou for name, iou in results["iou"].items() if iou is not None}

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", width_ratios=[1, 1.6])
colours = ["#D55E00" if name == "this model" else "#56B4E9" for name in contenders]
bars = left.barh(list(contenders), [100 * miou for miou in contenders.values()], color=colours)
left.bar_label(bars, fmt="%.0f", padding=3)
left.set_title("mIoU, percent")

palette = dict(zip(results["iou"], draw.palette(len(results["iou"])) / 255, strict=True))
right.bar(list(classes), [100 * iou for iou in classes.values()], color=[palette[name] for name in classes])
right.tick_params(axis="x", rotation=60)
right.set_title("IoU of this model on each class, percent")
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
