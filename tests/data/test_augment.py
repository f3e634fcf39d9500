"""Random resized crop and flip."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.data.augment import Augmentation, random_box, resize
from zeroseg_jax.errors import InputError


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_resize_is_pillows_bicubic():
    image = noise(50, 70)
    expected = Image.fromarray(image).crop((5, 10, 45, 40)).resize((24, 24), Image.Resampling.BICUBIC)
    # With a box the filter sees the pixels beside it; away from the border both agree.
    assert np.array_equal(resize(image, 24, (5, 10, 45, 40))[3:-3, 3:-3], np.asarray(expected)[3:-3, 3:-3])
    assert np.array_equal(
        resize(image, 24), np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC))
    )
    assert resize(noise(24, 24), 24).shape == (24, 24, 3)


def test_same_seed_epoch_and_index_give_the_same():
    image = noise(50, 70)
    augmentation = Augmentation(16, seed=3)
    first, flip = augmentation.finish(image, 2, 7)
    again, same_flip = Augmentation(16, seed=3).finish(image, 2, 7)
    assert np.array_equal(first, again) and flip == same_flip
    for seed, epoch, index in [(4, 2, 7), (3, 1, 7), (3, 2, 8)]:
        assert not np.array_equal(first, Augmentation(16, seed=seed).finish(image, epoch, index)[0])


def test_without_crop_only_the_flip_is_random():
    image = noise(50, 70)
    augmentation = Augmentation(16, crop=False)
    prepared = augmentation.prepare(image)
    flips = []
    for index in range(400):
        pixels, flip = augmentation.finish(prepared, 0, index)
        assert np.array_equal(pixels, prepared[:, ::-1] if flip else prepared)
        flips.append(flip)
    assert 0.4 < np.mean(flips) < 0.6
    assert not any(Augmentation(16, crop=False, flip=False).finish(prepared, 0, i)[1] for i in range(20))


def test_boxes_keep_scale_and_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(rng, (120, 160), (0.2, 0.8), (0.5, 2.0)) for _ in range(500)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 160 and boxes[:, 3].max() <= 120
    share, ratio = width * height / (120 * 160), width / height
    assert share.min() > 0.19 and share.max() < 0.81 and 0.45 < share.mean() < 0.55
    assert ratio.min() > 0.48 and ratio.max() < 2.1


def test_a_box_that_cannot_fit_is_central():
    assert random_box(np.random.default_rng(0), (10, 400), (0.9, 1.0), (3 / 4, 4 / 3)) == (193, 0, 206, 10)
    assert random_box(np.random.default_rng(0), (1, 1), (0.2, 1.0), (3 / 4, 4 / 3)) == (0, 0, 1, 1)


def test_from_config():
    data = SimpleNamespace(augment="none", scale=(0.5, 1), ratio=[1, 2], flip=False)
    assert Augmentation.from_config(data, 32, 7) == Augmentation(32, False, (0.5, 1.0), (1.0, 2.0), False, 7)
    for key, value in {"augment": "crops", "scale": (0.5,), "ratio": ()}.items():
        with pytest.raises(InputError, match=rf"data\.{key} is"):
            Augmentation.from_config(SimpleNamespace(**(vars(data) | {key: value})), 32, 7)


@pytest.mark.parametrize("options", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.2)}, {"ratio": (0.0, 1.0)}, {"seed": -1}])
def test_bad_options(options):
    with pytest.raises(InputError):
        Augmentation(16, **options)
