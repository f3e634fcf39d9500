"""The recipe `grounded` of ours for ImageNet-1k: CLIP ViT-B/16 taught to segment by its own views.

    python main.py --config=configs/vitb16_grounded.py --workdir=DIR --config.data.root=TFDS_DATA_FOLDER --distributed

The teacher is CLIP ViT-B/16, and its image tower is the start of the student's encoder. CLIP's class token embeds each
segment (`models.mask_class_token`). The loss `ground` takes the place of the matching loss. docs/results.md says what
both are worth on drawn scenes. This is not the paper's recipe, which is configs/vitb16.py.

Cost, by the FLOPs of the model at full efficiency of TPU v5e: the 14 views of all images are embedded once, 0.46 TFLOP
an image, 0.8 chip-hours, and take 18 GB in float16. The 20 epochs take 100 GFLOP an image and step, 3.6 chip-hours. The
paper's recipe at the same efficiency takes 8.5 chip-hours to embed its 30 views, 59 GB, and 13.3 for its 80 epochs.
`--config.optimizer.accumulate=4` fits 256 images a chip, in 9.9 GiB (compiled for v5e:4x4). The number of epochs, the
rates and the 16 segment tokens are guesses: nobody has run this recipe, so no accuracy is promised.
"""

from pathlib import Path

from ml_collections import ConfigDict

from zeroseg_jax.config import load_config

EPOCHS = 20


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("vitb16.py"))  # data, batch and devices
    photos = load_config(Path(__file__).with_name("photos.py"))  # student, losses and rates
    config.steps //= 4  # of the paper's 80 epochs
    config.init.mae = ""  # the encoder starts from the teacher

    config.views.grids = photos.views.grids
    config.teacher.path = photos.teacher.path
    config.teacher.chunk = 2

    config.student.update(photos.student)
    config.student.patch_size = 16
    config.loss.update(photos.loss)

    for key in ("lr", "encoder_lr", "weight_decay"):
        config.optimizer[key] = photos.optimizer[key]
    config.optimizer.warmup_steps = config.steps // EPOCHS
    return config
