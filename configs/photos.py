"""Your own photographs: a student learns from any folder of images and any CLIP, without labels and captions.

    python main.py --config=configs/photos.py --config.data.root=FOLDER --workdir=runs/photos

The teacher's image tower is the start of the student's encoder, so the sizes follow the teacher, whichever it is
(`--config.teacher.path`). The teacher looks at 14 views of each photograph once, and their embeddings are stored. Eight
photographs are kept out of the training. At the end runs/photos/gallery.png shows them with their segments, named by
the words in FOLDER/labels.txt (one on each line) or in `--config.eval.labels="cat,grass,the sky"`.

The run says at the start how much it has to compute. With CLIP ViT-B/16 a photograph costs 0.5 TFLOP once, and the 600
steps cost about 1,900 TFLOP together: minutes on a GPU, hours on a laptop. `--config.teacher.path=demo` is a trial in
minutes on any computer; the tiny teacher knows only drawn things.

The recipe is `grounded` (docs/results.md), which is ours. It was chosen on drawn scenes and on 319 photographs with a
small teacher. Nobody has measured it with a published CLIP.
"""

from ml_collections import ConfigDict

from zeroseg_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.steps = 600
    config.batch_size = 32
    config.image_size = 0  # as the teacher's
    config.checkpoint_every = 100

    config.data.source = "folder"
    config.data.split = "all"
    config.data.held_out = 8
    config.data.workers = 0

    config.views.grids = (1, 2, 3)
    config.teacher.path = "openai/clip-vit-base-patch16"
    config.teacher.source = "cache"
    config.teacher.chunk = 4

    config.student.encoder = "clip"
    config.student.segment_feature = "mask_class_token"
    config.student.patch_size = 0  # as the teacher's
    config.student.mask_ratio = 0.25
    config.student.decoder_width = 256
    config.student.decoder_depth = 2
    config.student.decoder_heads = 8
    config.student.segment_tokens = (16,)
    config.student.segment_depths = (1,)
    config.student.pool_depth = 0
    config.student.segment_heads = 8
    config.student.projection_width = 2048
    config.student.assignment = "soft"
    config.student.gumbel = False
    config.student.tau = 0.2

    config.loss["global"] = 1.0
    config.loss.match = 0.0
    config.loss.mae = 0.1
    config.loss.ground = 2.0
    config.loss.distance = "cosine"

    config.optimizer.lr = 5e-4
    config.optimizer.encoder_lr = 0.1
    config.optimizer.weight_decay = 0.03
    config.optimizer.warmup_steps = 40

    config.eval.dataset = ""  # there are no masks: the evaluation is a picture
    config.eval.rename = "teacher"
    return config
