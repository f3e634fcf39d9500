"""The demo: a student of 0.4 million parameters learns to segment procedural scenes from a tiny CLIP, without masks.

    python main.py --config=configs/demo.py

draws the scenes, embeds their views with the shipped teacher, distils and evaluates: minutes on two CPU cores.
runs/demo then holds results.json and gallery.png. The recipe is `grounded`: the view grounding loss instead of nearest
matching, soft assignment. configs/demo_paper.py has the three losses of the paper.
"""

from ml_collections import ConfigDict

from zeroseg_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.steps = 1000
    config.batch_size = 48
    config.image_size = 96
    config.checkpoint_every = 250

    config.data.source = "scenes"
    config.data.limit = 2500
    config.data.augment = "none"  # whole images, so that the teacher's embeddings can be stored
    config.data.flip = False

    config.views.grids = (1, 2, 3, 4)
    config.views.windows = ((0.3, 0.175),)
    config.teacher.path = "demo"
    config.teacher.source = "cache"

    config.student.patch_size = 8
    config.student.width = 64
    config.student.depth = 3
    config.student.heads = 4
    config.student.mask_ratio = 0.5
    config.student.decoder_width = 64
    config.student.decoder_depth = 1
    config.student.decoder_heads = 4
    config.student.segment_tokens = (16, 8)
    config.student.segment_depths = (1, 1)
    config.student.segment_heads = 4
    config.student.projection_width = 256
    config.student.assignment = "soft"
    config.student.gumbel = False

    config.loss["global"] = 1.0
    config.loss.match = 0.0
    config.loss.mae = 0.5
    config.loss.ground = 2.0
    config.loss.distance = "cosine"

    config.optimizer.lr = 1.5e-3
    config.optimizer.weight_decay = 0.03
    config.optimizer.warmup_steps = 40

    config.eval.dataset = "scenes"
    config.eval.split = "test"
    return config
