"""The demo with the three losses of the paper (global, nearest-view matching, reconstruction), hard Gumbel assignment.

    python main.py --config=configs/demo_paper.py

Everything else, the budget too, is that of configs/demo.py, and the two are compared in the README. Expect segments
that resemble each other: nothing in these losses says where in the image a segment belongs.
"""

from pathlib import Path

from ml_collections import ConfigDict

from zeroseg_jax.config import load_config


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("demo.py"))
    config.student.assignment = "hard"
    config.student.gumbel = True
    config.loss.match = 1.0
    config.loss.mae = 1.0
    config.loss.ground = 0.0
    config.loss.distance = "l1"
    return config
