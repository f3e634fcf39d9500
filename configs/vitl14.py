"""`vitb16` with a larger teacher: a ViT-B/16 student from MAE weights, distilled from CLIP ViT-L/14.

    python main.py --config=configs/vitl14.py --workdir=DIR --config.data.root=TFDS_DATA_FOLDER --distributed

Data, weights and evaluation are as configs/vitb16.py tells; the student is the same but for its last projection, to
768 numbers. What to expect: four times the FLOPs of a step, 97 % of them the teacher's, so a cache of its embeddings
(`--config.teacher.source=cache`) saves more here. With 64 images to a chip and
`--config.optimizer.accumulate=4` the step takes 4.6 GiB without recomputation (compiled for TPU v5e;
docs/performance.md). At full efficiency the 80 epochs would take 325 TPU v5e
chip-hours; this recipe has not been run at full length, so no accuracy is promised.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    # config files are not a package, so their neighbour is loaded by its path
    spec = importlib.util.spec_from_file_location("vitb16", Path(__file__).with_name("vitb16.py"))
    assert spec is not None and spec.loader is not None
    vitb16 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(vitb16)
    config = vitb16.get_config()
    config.teacher.path = "openai/clip-vit-large-patch14"
    return config
