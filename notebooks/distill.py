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
# # Distil a student
#
# A small ViT learns to segment from nothing but a frozen CLIP and pictures: no mask, no caption.

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
STEPS = 200
IMAGES = 192
SCENES = 16  # held out, to evaluate on
OVERRIDES = {}  # any other key of the config, such as {"loss.match": 0.5}

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from absl import logging
from PIL import Image

import zeroseg_jax
from zeroseg_jax.config import load_config, set_key
from zeroseg_jax.data.scenes.render import scene
from zeroseg_jax.train import train

logging.set_verbosity(logging.ERROR)  # TFDS recommends OpenCV, which is not needed here
workdir = Path(tempfile.mkdtemp(prefix="distill-"))

# %% [markdown]
# ## A folder of pictures
#
# Procedural scenes here; any folder of images does.

# %%
folder = workdir / "images"
folder.mkdir()
for seed in range(IMAGES):
    Image.fromarray(scene(seed).image).save(folder / f"{seed:04d}.png")

# %% [markdown]
# ## The run
#
# `configs/demo.py`, made small: a minute or so. The demo itself sees twelve times as many images, takes five minutes on
# two CPU cores and reaches 66 % mIoU on 200 scenes: `python main.py --config=configs/demo.py`.

# %%
config = load_config("../configs/demo.py")
config.steps = STEPS
config.batch_size = 8
config.optimizer.warmup_steps = 20
config.log_every = 5
config.data.source = "folder"
config.data.root = str(folder)
config.data.limit = IMAGES
config.eval.dataset = "scenes/tiny"
config.eval.limit = SCENES
config.eval.baselines = ("cells",)
for key, value in OVERRIDES.items():
    set_key(config, key, str(value))

results = train(config, workdir)

# %% [markdown]
# ## Its curves

# %%
metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
panels = {
    "ground": "segments pooled in a view,\ndistance to the teacher's view",
    "global": "whole image,\ndistance to the teacher's views",
    "mae": "reconstruction\nof masked patches",
    "lr": "learning rate",
}

figure, axes = plt.subplots(1, len(panels), figsize=(12, 2.8), layout="constrained")
for axis, (name, title) in zip(axes, panels.items(), strict=True):
    axis.plot([m["step"] for m in metrics], [m[name] for m in metrics], color="#0072B2", linewidth=2)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## What it sees

# %%
Image.open(workdir / "gallery.png")

# %% [markdown]
# ## Ask it in your own words
#
# `student.save("folder")` keeps it.

# %%
student = zeroseg_jax.load(workdir)
student.segment(scene(10, "test").image, ["red ladybird", "grass", "sand"])
