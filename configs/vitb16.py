"""ZeroSeg's published recipe: a ViT-B/16 student, CLIP ViT-L/14 as the teacher, ImageNet-1k, 80 epochs of 4096.

    python main.py --config=configs/vitb16.py --workdir=DIR --config.data.root=TFDS_DATA_FOLDER --distributed
    python main.py --config=configs/vitb16.py:24gb ...      # on one GPU of 24 GB
    python main.py --config=configs/vitb16.py:8x80gb ...    # on 8 A100s or H100s of 80 GB
    python main.py --config=configs/vitb16.py:16xv5e ...    # on 16 chips of TPU v5e

`TFDS_DATA_FOLDER` holds `imagenet2012`, prepared in ArrayRecord format; `--distributed` is for TPU pods and clusters.
CLIP and MAE weights come from the Hugging Face hub, or from folders given as `--config.teacher.path` and
`--config.init.mae`. `--config.eval.dataset=voc --config.eval.vocabulary=voc_zeroseg --config.eval.root=VOCdevkit`
evaluates as the paper does when the training ends.

The run first stores the teacher's embeddings of all images, 30 views each: 59 GB in float16, in WORKDIR/teacher_cache
or `--config.teacher.cache`. `--mode=embed` does only that. The step itself then needs no teacher, so the images must
arrive fast. Store them once as the training sees them, centre crops of 224 pixels, and read those. Do it before the
embeddings are stored, because these are bound to the images that they were made from:

    python -m zeroseg_jax.data.convert --source tfds:imagenet2012 --root TFDS_DATA_FOLDER --center_crop 224 --out CROPS
    python main.py ... --config.data.source=arrayrecord --config.data.root=CROPS

From the paper: the architecture (12 + 8 + 5 layers, 32 and 8 segment tokens), the teacher, the 30 views, the three
losses, mask ratio 0.6, centre crops, no mirror images, 80 epochs, 20 of them warm-up, batch 4096, AdamW, base learning
rate 1.5e-4.

Our choices, where the paper's text is silent: the start from MAE weights; width 512 of the reconstruction and its
normalised pixels; one MLP of width 4096 for the image feature and the segment features, after the last layer; unit
length before L1, L1 divided by sqrt(768), views averaged; weight 1 for each loss; hard assignment with Gumbel noise of
temperature 1, as GroupViT has it; AdamW's betas and weight decay, MAE's; clipping at 1; a cosine to zero; bfloat16.

Cost: 182 million parameters in the student, 92 GFLOP an image and step. Batch 4096 fits 16 TPU v5e chips without
recomputation with `--config.optimizer.accumulate=4`: 8.7 GiB a chip, at least 18 chip-hours for the 80 epochs, which
is 1.1 hours on 16 chips at full efficiency (compiled, a roofline). On 8 H100s expect 1.5 hours at the 223 TFLOP/s a
card that such a step reached on an H200. Storing the embeddings comes before that: 4.7 TFLOP an image, at least 8 v5e
chip-hours, or 40 minutes on 8 H100s at the 326 TFLOP/s that an H200 reached with a teacher. The paper took 84 V100
hours. Nobody has run this recipe at full length with this code, so no accuracy is promised.
"""

from ml_collections import ConfigDict

from zeroseg_jax.config import default_config
from zeroseg_jax.errors import InputError

IMAGES = 1_281_167
EPOCHS = 80
WARMUP_EPOCHS = 20
DEVICES = {
    "": {},
    "24gb": {"accumulate": 64, "chunk": 4},
    "8x80gb": {"accumulate": 2, "chunk": 8},
    "16xv5e": {"accumulate": 4, "chunk": 1},
}
"""Parts that a device splits its images into, and images that pass the teacher at once, by the devices. The batch of
4096 images and the results are the same for all."""


def get_config(devices: str = "") -> ConfigDict:
    if devices not in DEVICES:
        raise InputError(
            f"configs/vitb16.py has no settings for {devices!r}; choose {', '.join(filter(None, DEVICES))}"
        )
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
    config.data.augment = "center"
    config.data.flip = False
    config.data.max_broken_share = 0.01

    config.views.grids = (1, 2, 3, 4)
    config.teacher.path = "openai/clip-vit-large-patch14"
    config.teacher.source = "cache"
    # 30 views an image: small parts stay in a TPU's fast memory; more at once suit a GPU
    config.teacher.chunk = DEVICES[devices].get("chunk", 1)

    # the student's sizes are the defaults of StudentConfig
    config.init.mae = "facebook/vit-mae-base"

    config.loss["global"] = 1.0
    config.loss.match = 1.0
    config.loss.mae = 1.0
    config.loss.distance = "l1"

    config.optimizer.lr = 1.5e-4 * config.batch_size / 256
    config.optimizer.betas = (0.9, 0.95)
    config.optimizer.weight_decay = 0.05
    config.optimizer.accumulate = DEVICES[devices].get("accumulate", 1)
    config.optimizer.warmup_steps = WARMUP_EPOCHS * IMAGES // config.batch_size

    config.eval.dataset = ""
    return config
