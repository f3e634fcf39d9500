"""The demo: a student of 0.75 million parameters learns to segment procedural scenes from a tiny CLIP, without masks.

    python main.py --config=configs/demo.py

draws the scenes, embeds their views with the shipped teacher, distils and evaluates: minutes on two CPU cores.
runs/demo then holds results.json and gallery.png. The recipe is `grounded`: the view grounding loss instead of nearest
matching, soft assignment, an encoder that starts from the teacher's image tower, and segments that its class token
embeds (docs/results.md says what each is worth). configs/demo_paper.py is the paper's recipe at this size.
"""

from ml_collections import ConfigDict

from zeroseg_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.steps = 600
    config.batch_size = 32
    config.image_size = 96
    config.checkpoint_every = 300

    config.data.source = "scenes"
    config.data.limit = 2500
    config.data.augment = "none"  # whole images, so that the teacher's embeddings can be stored
    config.data.flip = False
    config.data.workers = 0  # small pictures, and few of them

    config.views.grids = (1, 2, 3)
    config.teacher.path = "demo"
    config.teacher.source = "cache"
    config.teacher.chunk = 1  # what fits a CPU's cache is fastest

    config.student.encoder = "clip"
    config.student.segment_feature = "mask_class_token"
    config.student.patch_size = 8
    config.student.mask_ratio = 0.25  # higher ones hide small objects
    config.student.remat = "dots"  # less memory traffic: a fifth faster on a CPU
    config.student.decoder_width = 48
    config.student.decoder_depth = 1
    config.student.decoder_heads = 4
    config.student.segment_tokens = (16,)
    config.student.segment_depths = (1,)
    config.student.pool_depth = 0
    config.student.segment_heads = 4
    config.student.projection_width = 128
    config.student.assignment = "soft"
    config.student.gumbel = False
    config.student.tau = 0.2  # sharp from the start: at 1 the segments take hundreds of steps to part

    config.loss["global"] = 1.0
    config.loss.match = 0.0
    config.loss.mae = 0.1
    config.loss.ground = 2.0
    config.loss.distance = "cosine"

    config.optimizer.lr = 2e-3
    config.optimizer.encoder_lr = 0.5
    config.optimizer.weight_decay = 0.03
    config.optimizer.warmup_steps = 40

    config.eval.dataset = "scenes"
    config.eval.split = "test"
    config.eval.limit = 200
    # chosen on validation scenes
    config.eval.templates = ("a {}", "{}")
    config.eval.scale = 14.0
    config.eval.flip = True
    config.eval.rename = "teacher"
    config.eval.rename_weight = 0.5
    return config
