"""The tiny teacher: a CLIP of half a million parameters that names outlines and patterns, trained from captions.

    python main.py --config=configs/teacher_demo.py

draws 12 000 procedural scenes, cuts 96 000 captioned crops of 32 x 32 pixels from them, trains for half an hour on two
CPU cores and writes the Hugging Face folder WORKDIR/clip; `zeroseg_jax/assets/demo` is the result. On photographs of
your own, with a metadata.jsonl of `file_name` and `text` on each line:

    python main.py --config=configs/teacher_demo.py --config.data.source=folder --config.data.root=DIR \
        --config.image_size=64 --config.vision.patch_size=8 --config.data.augment=crop --config.steps=2000
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "teacher"
    config.seed = 0
    config.steps = 3000
    config.batch_size = 128
    config.image_size = 32
    config.checkpoint_every = 500
    config.log_every = 20

    config.data = ConfigDict()
    config.data.source = "scenes"  # "scenes", or "folder" with a metadata.jsonl
    config.data.scenes = 12_000
    config.data.root = ""
    config.data.split = "train"
    config.data.limit = 0
    config.data.augment = "none"  # the scenes' crops are cut already; "crop" for photographs
    config.data.scale = (0.3, 1.0)
    config.data.ratio = (3 / 4, 4 / 3)
    config.data.flip = True
    config.data.workers = 0
    config.data.max_broken_share = 0.1

    # written beside the weights, for `zeroseg_jax.load`: how captions name things, and the best size to read images at
    config.templates = ("a {}", "{}")
    config.segment_size = 96

    config.embed_dim = 64
    config.vision = ConfigDict({"patch_size": 4, "width": 96, "depth": 3, "heads": 4})
    config.text = ConfigDict({"vocabulary": 640, "context": 16, "width": 64, "depth": 2, "heads": 4})

    config.name_steps = 700  # single things by their bare names first: the short way to outlines and patterns
    config.fixed_scale_steps = 300
    config.max_logit_scale = 14.0  # a low one spreads the embeddings, which makes them easy to distil

    config.optimizer = ConfigDict()
    config.optimizer.lr = 2e-3
    config.optimizer.encoder_lr = 1.0
    config.optimizer.betas = (0.9, 0.98)
    config.optimizer.weight_decay = 0.02
    config.optimizer.warmup_steps = 100
    config.optimizer.clip = 1.0
    config.optimizer.accumulate = 1
    return config.lock()
