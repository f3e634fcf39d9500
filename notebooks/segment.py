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
# # Segment with your own words
#
# A model, an image, a list of words.

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
# The shipped tiny CLIP, read out patch by patch, takes no download and no training, and its pictures look like it. A
# student draws far better: "../runs/demo", after `python main.py --config=configs/demo.py`. For photographs, a hub id:
# "openai/clip-vit-base-patch16".
MODEL = "demo"
SCENES = 8

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import zeroseg_jax
from zeroseg_jax import draw
from zeroseg_jax.data.scenes.render import MATERIALS, NAMES, scene

model = zeroseg_jax.load(MODEL)
image = scene(16, "test").image  # or a path, such as "photo.jpg"

out = model.segment(image, ["ladybird", "heart", "bricks"])
out

# %%
print(out.areas())
print(out.label_map.shape, out.label_map.dtype, "index into", out.labels)
for annotation in out.to_coco():
    print(annotation["category"], annotation["bbox"], annotation["area"], annotation["segmentation"]["counts"][:16])
# out.save("overlay.png"); out.save_mask("mask.png")

# %% [markdown]
# ## Encode once, ask often
#
# Any words will do, and what is not there should get no pixels. The tiny CLIP knows twelve objects, six materials and
# six colours.

# %%
encoded = model.encode(image)
questions = ["ladybird", "bricks"], ["green ladybird", "purple heart", "bricks"], ["ladybird", "fish", "bricks"]

figure, axes = plt.subplots(1, len(questions), figsize=(12, 5), layout="constrained")
for axis, words in zip(axes, questions, strict=True):
    axis.imshow(encoded.segment(words).overlay(size=384))
    axis.set_anchor("N")
    axis.axis("off")

# %% [markdown]
# ## One jitted function
#
# `segment_fn` takes a whole batch, uint8 (B, H, W, 3) → int32 (B, H, W), and stays on the device. `model.export` writes
# it for machines without this package; `model.save` writes the model for `zeroseg_jax.load`.

# %%
scenes = [scene(seed, "test") for seed in range(SCENES)]
images = np.stack([s.image for s in scenes])

find_materials = model.segment_fn(images.shape[1:3], MATERIALS)
find_materials(images).block_until_ready()  # compiles
start = time.perf_counter()
materials = np.asarray(find_materials(images))
print(f"{SCENES / (time.perf_counter() - start):.0f} images a second")

# %% [markdown]
# ## A gallery
#
# From top to bottom: the image, `segment_fn`'s materials, the answer to the words above it, the truth.

# %%
words = [list(dict.fromkeys([*(o.name for o in s.objects), *s.materials])) for s in scenes]
answers = [model.segment(s.image, w) for s, w in zip(scenes, words, strict=True)]


def paint(label_map, labels):
    """One colour for each name, whatever its place among the labels."""
    return draw.paint(np.array([NAMES.index(label) for label in labels])[label_map], len(NAMES))


rows = [
    images,
    [paint(label_map, MATERIALS) for label_map in materials],
    [paint(answer.label_map, answer.labels) for answer in answers],
    [paint(s.mask, NAMES) for s in scenes],
]
legend = [(name, tuple(colour)) for name, colour in zip(NAMES, draw.palette(len(NAMES)), strict=True)]
draw.gallery([", ".join(w) for w in words], rows, legend, cell=120)
