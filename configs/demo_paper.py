"""The demo by the paper's recipe: its three losses, its segmentation head and its 30 views, at the demo's size.

    python main.py --config=configs/demo_paper.py

draws the scenes, stores the teacher's embeddings, distils and evaluates, in minutes on two CPU cores. It follows the
paper in all that scales down: grids 1 to 4, mask ratio 0.6, whole images without mirroring, a quarter of the training
as warm-up, two grouping stages with two layers each, one layer over the segment tokens, hard Gumbel assignment, L1
distances, and matching that leaves the whole image out.

What differs: images of 96 pixels with patches of 8, a tiny CLIP as the teacher, 16 and 8 segment tokens, one layer of
reconstruction, 600 steps of 32 images. The encoder starts from the teacher's image tower, because no MAE weights of
this size exist. docs/results.md compares the recipe with configs/demo.py, and says where it fails.
"""

from pathlib import Path

from ml_collections import ConfigDict

from zeroseg_jax.config import load_config


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("demo.py"))
    config.views.grids = (1, 2, 3, 4)
    config.student.mask_ratio = 0.6
    config.student.segment_feature = "mlp"
    config.student.segment_tokens = (16, 8)
    config.student.segment_depths = (2, 2)
    config.student.pool_depth = 1
    config.student.assignment = "hard"
    config.student.gumbel = True
    config.student.tau = 1.0
    config.loss.match = 1.0
    config.loss.mae = 1.0
    config.loss.ground = 0.0
    config.loss.distance = "l1"
    config.optimizer.warmup_steps = config.steps // 4
    return config
