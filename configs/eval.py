"""Evaluates any model on any benchmark: a workdir, an exported folder, a CLIP (by `eval.readout`).

    python main.py --config=configs/eval.py --mode=eval --config.model=runs/demo
    python main.py --config=configs/eval.py --mode=eval --config.model=openai/clip-vit-base-patch16 \
        --config.eval.dataset=voc --config.eval.root=VOCdevkit/VOC2012 --config.eval.split=val

prints the table of the model and its baselines and writes results.json, results.md, per_class.csv, gallery.png and
report.html into runs/eval (`--workdir`). `--config.eval.compare=runs/a,runs/b` evaluates other models on the same
images. The table then has their differences, with paired intervals. Without a model it evaluates the shipped teacher.
"""

from ml_collections import ConfigDict

from zeroseg_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.task = "eval"  # nothing to train
    config.model = "demo"
    return config
