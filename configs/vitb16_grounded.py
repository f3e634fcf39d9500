"""The recipe `grounded` of ours for ImageNet-1k: CLIP ViT-B/16 taught to segment by its own views.

    python main.py --config=configs/vitb16_grounded.py --workdir=DIR --config.data.root=TFDS_DATA_FOLDER --distributed

The teacher is CLIP ViT-B/16, and its image tower is the start of the student's encoder. The loss `ground` takes the
place of the matching loss (docs/results.md says what it is worth on drawn scenes). This is not the paper's recipe,
which is configs/vitb16.py.

Cost, by the FLOPs of the model at full efficiency of TPU v5e: the 14 views of all images are embedded once, 0.46 TFLOP
an image, 0.8 chip-hours, and take 18 GB in float16. The 20 epochs take 91 GFLOP an image and step, 3.3 chip-hours. The
paper's recipe at the same efficiency takes 8.5 chip-hours to embed its 30 views, 59 GB, and 13.3 for its 80 epochs.
Set `--config.optimizer.accumulate=4` for 256 images a chip. The number of epochs, the rates and the 16 segment tokens
are guesses: nobody has run this recipe, so no accuracy is promised.
"""

from pathlib import Path

from ml_collections import ConfigDict

from zeroseg_jax.config import load_config

IMAGES = 1_281_167
EPOCHS = 20


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("vitb16.py"))
    config.steps = EPOCHS * IMAGES // config.batch_size
    config.init.mae = ""  # the encoder starts from the teacher

    config.views.grids = (1, 2, 3)
    config.teacher.path = "openai/clip-vit-base-patch16"
    config.teacher.chunk = 2

    config.student.encoder = "clip"
    config.student.mask_ratio = 0.25  # higher ones hide small objects
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
    config.optimizer.warmup_steps = IMAGES // config.batch_size
    return config
