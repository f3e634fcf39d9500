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
# # Segment an image with your own words
#
# A CLIP knows images and texts. This notebook asks a CLIP which word fits each part of an image. Nothing is trained.

# %%
# Installs the package where it is missing: from this clone of the project, or else from the package index.
import os
from importlib.util import find_spec

if not find_spec("zeroseg_jax"):
    SOURCE = ".." if os.path.exists("../setup.cfg") else "zeroseg_jax"
    # %pip install -q "{SOURCE}[notebooks]"

# %% tags=["parameters"]
MODEL = "openai/clip-vit-base-patch16"  # a hub id, a folder, or the workdir of a run such as "../runs/demo"
PHOTO = "coffee.jpg"  # your own photograph: its path
WORDS = ["a cup of coffee", "a red saucer", "a spoon", "a wooden table"]
SCENES = 6

# %% [markdown]
# ## Load a model
#
# A CLIP comes from the Hugging Face hub, about 600 MB at the first time. Without a network the photograph is shown as
# it is, and the notebook goes on with the tiny CLIP that the package ships. That one knows only drawn scenes.

# %%
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import zeroseg_jax
from zeroseg_jax import draw
from zeroseg_jax.data.scenes.render import MATERIALS, NAMES, scene

try:
    model = zeroseg_jax.load(MODEL)
except zeroseg_jax.InputError as error:
    model = None
    print(error)

# %% [markdown]
# ## A photograph and your words
#
# Every pixel gets the word that fits it best. So name everything that is in the image, the background too.
#
# The photograph is by Rachel Michetti (CC0).

# %%
picture = Image.open(PHOTO) if model is None else model.segment(PHOTO, WORDS).overlay()
picture

# %% [markdown]
# ## What `segment` returns
#
# The scenes below are drawn by the package. The tiny CLIP was made for them: it knows twelve objects, six materials and
# six colours.
#
# | | |
# |---|---|
# | `out.label_map` | int32 (H, W): the index into `out.labels` of every pixel |
# | `out.segments` | int32 (H, W): the segment, or the patch, that a pixel belongs to |
# | `out.scores` | float32 (segments, words): the cosine of each segment with each word |
# | `out.overlay()`, `out.save("x.png")` | the picture below |
# | `out.save_mask("mask.png")` | a PNG with the indices as pixel values |
# | `out.to_coco()` | annotations as COCO has them |

# %%
scenes_model = zeroseg_jax.load("demo")
example = scene(16, "test")
out = scenes_model.segment(example.image, ["ladybird", "heart", "bricks"])
print(out.label_map.shape, out.label_map.dtype, "index into", out.labels)
for word, share in out.areas().items():
    print(f"{share:6.1%}  {word}")
out

# %% [markdown]
# ## Encode once, label often
#
# The model sees the image once. Other words then cost little.

# %%
encoded = scenes_model.encode(example.image)
lists_of_words = ["ladybird", "bricks"], ["green ladybird", "purple heart", "bricks"], ["ladybird", "fish", "bricks"]

figure, axes = plt.subplots(1, 4, figsize=(12, 4), layout="constrained")
axes[0].imshow(example.image)
axes[0].set_title("the image")
for axis, words in zip(axes[1:], lists_of_words, strict=True):
    axis.imshow(encoded.segment(words).overlay(size=384))
    axis.set_title(", ".join(words), fontsize=9)
for axis in axes:
    axis.set_anchor("N")
    axis.axis("off")

# %% [markdown]
# ## What a word scores
#
# Each patch of the image has an embedding. The cosine with the embedding of a word says how well they fit. The brighter
# a patch, the better the word fits it.

# %%
result = encoded.segment(["ladybird", "heart", "bricks"])
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
for axis, word, scores in zip(axes, result.labels, result.scores.T, strict=True):
    picture = axis.imshow(scores[result.segments], cmap="magma")
    axis.set_title(f'cosine with "{word}"', fontsize=10)
    axis.axis("off")
    figure.colorbar(picture, ax=axis, shrink=0.7)

# %% [markdown]
# ## One jitted function
#
# `segment_fn` gives the function itself: uint8 (B, H, W, 3) → int32 (B, H, W). It takes a whole batch and stays on the
# device. `model.export("segment.jax", labels)` writes it for machines without this package.

# %%
scenes = [scene(seed, "test") for seed in range(SCENES)]
images = np.stack([drawn.image for drawn in scenes])
find_materials = scenes_model.segment_fn(images.shape[1:3], MATERIALS)
print(find_materials)
materials = np.asarray(find_materials(images))

# %% [markdown]
# ## A gallery
#
# From top to bottom: the image, the materials by `segment_fn`, the words above the column by `segment`, the truth.
# A student that was distilled from this CLIP draws far better: see `distill.ipynb`.

# %%
words = [list(dict.fromkeys([*(shape.name for shape in drawn.objects), *drawn.materials])) for drawn in scenes]
results = [scenes_model.segment(drawn.image, names) for drawn, names in zip(scenes, words, strict=True)]


def paint(label_map, labels):
    """One colour for each name, whatever its place among the labels."""
    return draw.paint(np.array([NAMES.index(label) for label in labels])[label_map], len(NAMES))


rows = [
    images,
    [paint(label_map, MATERIALS) for label_map in materials],
    [paint(result.label_map, result.labels) for result in results],
    [paint(drawn.mask, NAMES) for drawn in scenes],
]
legend = [(name, tuple(colour)) for name, colour in zip(NAMES, draw.palette(len(NAMES)), strict=True)]
draw.gallery([", ".join(names) for names in words], rows, legend, cell=120)
