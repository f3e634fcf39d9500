"""A variant of ours: the student of `vitb16`, taught online by CLIP ViT-B/16 on random crops.

    python main.py --config=configs/vitb16_online.py --workdir=DIR --config.data.root=TFDS_DATA_FOLDER --distributed

Every step embeds its own crops, so nothing is stored, and no image is seen twice in the same way. The teacher is the
smaller CLIP, with the 14 views of grids 1 to 3, because 30 views of a ViT-L/14 in every step would cost 50 times the
student. Random crops and mirror images are not the paper's; configs/vitb16.py has its recipe, and what else is ours.

Cost: 551 GFLOP an image and step, 460 of them for the teacher's 14 views. At full efficiency the 80 epochs take 80
TPU v5e chip-hours. Set `--config.optimizer.accumulate=4` for 256 images a chip. Nobody has run this recipe at full
length, so no accuracy is promised.
"""

from pathlib import Path

from ml_collections import ConfigDict

from zeroseg_jax.config import load_config


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("vitb16.py"))
    config.data.augment = "crop"
    config.data.flip = True
    config.views.grids = (1, 2, 3)
    config.teacher.path = "openai/clip-vit-base-patch16"
    config.teacher.source = "online"
    config.teacher.chunk = 2  # 28 views at once: small parts stay in a TPU's fast memory; 16 suits a GPU
    return config
