"""The procedural scenes as a benchmark."""

from collections.abc import Mapping, Sequence

from zeroseg_jax.data.decode import decode_image
from zeroseg_jax.data.scenes.render import MATERIALS, NAMES, OBJECTS
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.masks import Example, decode_mask


class Scenes:
    """A split of the procedural scenes. Objects and materials are groups with their own mean IoU."""

    name = "scenes"
    classes = NAMES
    background = None
    vocabulary = ""
    groups: Mapping[str, Sequence[int]] = {
        "objects": range(len(OBJECTS)),
        "materials": range(len(OBJECTS), len(OBJECTS) + len(MATERIALS)),
    }

    def __init__(self, root: str, config: str = "default", split: str = "validation", limit: int = 0):
        # Imported here, because TFDS takes a second to import.
        from zeroseg_jax.data.scenes.builder import SIZES, prepare
        from zeroseg_jax.data.sources.tfds import PreparedSource

        folder = prepare(root, config)
        if split not in SIZES[config]:
            raise InputError(f"the scenes have no split {split!r}; set eval.split to one of {', '.join(SIZES[config])}")
        self._source = PreparedSource("zeroseg_scenes", folder, split)
        self._count = min(limit, len(self._source)) if limit else len(self._source)
        self._split = split

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < self._count:
            raise IndexError(i)
        name = f"{self._split}/{i:05d}"
        mask = decode_mask(self._source.feature(i, "segmentation"), name)
        return Example(decode_image(self._source.read(i), name), mask, name)
