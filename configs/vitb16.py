"""The full recipe: a ViT-B/16 student from MAE weights, CLIP ViT-B/16 as its teacher, ImageNet-1k, 80 epochs of 4096.

    python main.py --config=configs/vitb16.py --workdir=DIR --config.data.root=TFDS_DATA_FOLDER --distributed

`TFDS_DATA_FOLDER` holds `imagenet2012` prepared in ArrayRecord format; `--distributed` is for TPU pods and clusters.
MAE and CLIP weights come from the Hugging Face hub, or from folders given as `--config.init.mae` and
`--config.teacher.path`. The workdir's results are those of PASCAL VOC 2012 where `--config.eval.dataset=voc
--config.eval.root=FOLDER` are given.

What to expect: 167 million parameters in the student. Of the 525 GFLOP an image, 453 are the teacher's 14 views, so
`--config.teacher.source=cache` makes a step up to eight times cheaper, at the price of fixed crops (18 GB of
embeddings for each of `teacher.cached_crops`, 37 with mirror images; docs/data.md). With 64 images to a chip the step
takes 6.5 GiB without recomputation, with 256 and `--config.optimizer.accumulate=4` 7.8 GiB (compiled for TPU v5e;
docs/performance.md). At full efficiency the 80 epochs would take 76 TPU v5e chip-hours; this recipe has not been run
at full length, so no accuracy is promised.
"""

from ml_collections import ConfigDict

from zeroseg_jax.config import default_config

IMAGES = 1_281_167
EPOCHS = 80


def get_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 4096
    config.steps = EPOCHS * IMAGES // config.batch_size
    config.image_size = 224
    config.dtype = "bfloat16"
    config.checkpoint_every = 1000
    config.log_every = 20

    config.data.source = "tfds:imagenet2012"
    config.data.root = "~/tensorflow_datasets"
    config.data.split = "train"
    config.data.augment = "crop"
    config.data.workers = 16
    config.data.max_broken_share = 0.01

    config.views.grids = (1, 2, 3)
    config.teacher.path = "openai/clip-vit-base-patch16"
    config.teacher.source = "online"
    config.teacher.chunk = 2  # 28 views at once: small parts stay in a TPU's fast memory; 16 suits a GPU

    # the student's sizes are the defaults: ViT-B/16, mask ratio 0.75, 32 and 8 segment tokens, hard Gumbel assignment
    config.init.mae = "facebook/vit-mae-base"

    # losses 1 to 3, the paper's; for the `grounded` recipe set loss.match=0, loss.ground=2 and student.assignment=soft
    config.loss["global"] = 1.0
    config.loss.match = 1.0
    config.loss.mae = 1.0

    config.optimizer.lr = 2.4e-3  # 1.5e-4 for 256 images, scaled linearly as MAE does
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_steps = 10 * IMAGES // config.batch_size  # ten epochs

    config.eval.dataset = ""
    return config
