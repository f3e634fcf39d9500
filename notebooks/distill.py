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
# A *student* learns to segment images. It sees no mask and no caption. It learns from a frozen CLIP, the
# *teacher*. This notebook shows each part of the method with a picture, then trains a small student.

# %%
# Installs the package where it is missing: from this clone of the project, or else from the package index.
import os
from importlib.util import find_spec

if not find_spec("zeroseg_jax"):
    SOURCE = ".." if os.path.exists("../setup.cfg") else "zeroseg_jax"
    # %pip install -q "{SOURCE}[notebooks]"

# %% tags=["parameters"]
STEPS = 200
IMAGES = 192
SCENES = 16  # held out, to evaluate on
OVERRIDES = {}  # any other key of the config, such as {"loss.match": 0.5}
PHOTOGRAPHS = ""  # a folder of your photographs, for the last cell
TEACHER = "openai/clip-vit-base-patch16"  # the CLIP that they are shown to
WORDS = "cat,grass,the sky"  # what is in them

# %%
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from absl import logging
from IPython.display import display
from PIL import Image

import zeroseg_jax
from zeroseg_jax import draw
from zeroseg_jax.config import load_config, set_key
from zeroseg_jax.data.scenes.render import NAMES, scene
from zeroseg_jax.distill.views import crop_views, view_boxes
from zeroseg_jax.models.mae import patchify
from zeroseg_jax.train import train

logging.set_verbosity(logging.ERROR)
workdir = Path(tempfile.mkdtemp(prefix="distill-"))
example = scene(10, "test").image

# %% [markdown]
# ## Unlabelled images
#
# Any folder of images does. Here it holds scenes that the package draws, because the shipped teacher knows only those.
# With photographs, take a real CLIP as the teacher: `config.teacher.path = "openai/clip-vit-base-patch16"`.

# %%
folder = workdir / "images"
folder.mkdir()
for seed in range(IMAGES):
    Image.fromarray(scene(seed).image).save(folder / f"{seed:04d}.png")

# %% [markdown]
# ## What a view is
#
# The teacher can only tell what a whole picture shows. So it looks at the whole image and at the cells of grids, 2 x 2
# and 3 x 3 here, up to 4 x 4 in the paper. Each of them is a *view*. The teacher turns a view into one embedding. The
# word above a view is the one whose embedding is nearest. The student never sees these words. It sees the embeddings.

# %%
teacher = zeroseg_jax.load_clip("demo")
boxes = view_boxes((1, 2, 3))
views = crop_views(jnp.asarray(example, jnp.float32)[None] / 255, boxes, 96)[0]
embeddings = teacher.encode_image(np.asarray(views * 255).round().astype(np.uint8))
nearest = (embeddings @ teacher.encode_text([f"a {name}" for name in NAMES]).T).argmax(axis=1)

figure, axes = plt.subplots(2, 7, figsize=(12, 3.9), layout="constrained")
for axis, view, name in zip(axes.flat, views, nearest, strict=True):
    axis.imshow(view)
    axis.set_title(NAMES[name], fontsize=9)
    axis.axis("off")

# %% [markdown]
# ## What the student does
#
# 1. It sees only a part of the patches of an image. The rest are hidden.
# 2. Its decoder guesses the pixels of the hidden patches, as a masked autoencoder does.
# 3. Its *segment tokens* share the patches among themselves. A token and its patches are a *segment*.
# 4. An MLP gives each segment, and the image as a whole, a feature in the teacher's space.
#
# ## What each loss compares
#
# | loss | what it compares | from |
# |---|---|---|
# | `mae` | the guessed pixels of hidden patches with the true ones | the paper |
# | `global` | the feature of the whole image with the embedding of every view | the paper |
# | `match` | each segment with the view nearest to it (never the whole image) | the paper |
# | `ground` | the segments that lie inside a view, averaged by area, with that view | ours |
#
# `match` does not say where a segment lies. `ground` does. `configs/demo.py` takes `ground` in place of `match`;
# `configs/demo_paper.py` is the paper's recipe. `docs/results.md` compares them.

# %% [markdown]
# ## The run
#
# `configs/demo.py`, made small: one to three minutes on a laptop. The demo itself sees twelve times as many images. It
# takes six minutes on two CPU cores: `python main.py --config=configs/demo.py`.

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
# ## The losses over the steps

# %%
metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
panels = {
    "ground": "ground: segments in a view,\ndistance to the view",
    "global": "global: whole image,\ndistance to the views",
    "mae": "mae: error of\nhidden patches",
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
# ## What the student sees, guesses and groups
#
# From left to right: an image; the patches that the student sees in training; its guess of the hidden ones; its
# segments when it sees the whole image, each in its mean colour. Each patch was normalised before the guess, so the
# picture takes the mean and the contrast of each hidden patch from the truth.

# %%
model = zeroseg_jax.load(workdir)
student = model.method.student
patch = student.config.patch_size
pixels = jnp.asarray(example, jnp.float32)[None] / 255
rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
output = student(pixels, noise=jax.random.uniform(jax.random.key(0), (1, rows * columns)))

patches = patchify(pixels, patch)
guess = output.reconstruction * patches.std(axis=-1, keepdims=True) + patches.mean(axis=-1, keepdims=True)
hidden = output.mask[..., None] > 0


def picture(values):
    """Patches (1, rows * columns, patch * patch * 3) in [0, 1] -> an image."""
    grid = np.asarray(values).reshape(rows, columns, patch, patch, 3).swapaxes(1, 2)
    return grid.reshape(rows * patch, columns * patch, 3).clip(0, 1)


segments = model.segment(example, NAMES, guide=0.0).segments
pictures = {
    "the image": example,
    "what it sees": picture(jnp.where(hidden, 0.8, patches)),
    "its guess": picture(jnp.where(hidden, guess, patches)),
    f"its {len(np.unique(segments))} segments": draw.paint_segments(example, segments),
}
figure, axes = plt.subplots(1, len(pictures), figsize=(12, 3.4), layout="constrained")
for axis, (title, shown) in zip(axes, pictures.items(), strict=True):
    axis.imshow(shown)
    axis.set_title(title, fontsize=10)
    axis.axis("off")

# %% [markdown]
# ## Held-out scenes
#
# The words are the names of the 18 things that scenes are made of. `cells` is what the teacher's 3 x 3 views give when
# they are painted as they are.

# %%
Image.open(workdir / "gallery.png")

# %% [markdown]
# ## Your own words
#
# `model.save("folder")` keeps the student. `zeroseg_jax.load("folder")` reads it.

# %%
model.segment(example, ["red ladybird", "grass", "sand"])

# %% [markdown]
# ## Your own photographs
#
# `configs/photos.py` takes any folder of photographs and any CLIP. At the top, set `PHOTOGRAPHS` to a folder, `TEACHER`
# to a CLIP, and `WORDS` to what is in the photographs. Then run this cell. It keeps eight photographs out of the
# training, and shows them with their segments and words. With the CLIP above it takes minutes on a GPU and hours on a
# laptop.

# %%
if PHOTOGRAPHS:
    config = load_config("../configs/photos.py")
    config.data.root, config.teacher.path, config.eval.labels = PHOTOGRAPHS, TEACHER, WORDS
    config.steps, config.optimizer.warmup_steps = STEPS, min(STEPS, config.optimizer.warmup_steps)
    train(config, workdir / "photographs")
    display(Image.open(workdir / "photographs" / "gallery.png"))
