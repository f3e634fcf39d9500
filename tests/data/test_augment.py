"""Random crops, centre crops and flip."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.data.augment import Augmentation, center_box, mirrored, random_box
from zeroseg_jax.data.decode import EncodedImage, Picture
from zeroseg_jax.data.resize import resize
from zeroseg_jax.errors import InputError


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(height: int, width: int) -> Picture:
    return Picture(noise(height, width), (height, width), 1)


def augmented(augmentation: Augmentation, image: Picture, epoch: int, index: int) -> tuple[np.ndarray, bool]:
    """The image as the pipeline shows it in `epoch`, and whether it is mirrored."""
    box, flip = augmentation.draw(image.extent, epoch, index)
    pixels = augmentation.crop(image, box)
    return mirrored(pixels) if flip else pixels, flip


def reused(augmentation: Augmentation, image: Picture) -> Picture:
    """What the pipeline keeps of an image."""
    pixels = augmentation.crop(image, augmentation.draw(image.extent, 0, 0)[0])
    kept = augmentation.reusable(image, pixels)
    assert kept is not None
    return kept


def test_same_seed_epoch_and_index_give_the_same():
    image = picture(50, 70)
    augmentation = Augmentation(16, seed=3)
    first, flip = augmented(augmentation, image, 2, 7)
    again, same_flip = augmented(Augmentation(16, seed=3), image, 2, 7)
    assert np.array_equal(first, again) and flip == same_flip
    for seed, epoch, index in [(4, 2, 7), (3, 1, 7), (3, 2, 8)]:
        assert not np.array_equal(first, augmented(Augmentation(16, seed=seed), image, epoch, index)[0])


def test_without_crop_only_the_flip_is_random():
    augmentation = Augmentation(16, augment="none")
    prepared = reused(augmentation, picture(50, 70))
    whole = resize(noise(50, 70), 16)
    flips = []
    for index in range(400):
        pixels, flip = augmented(augmentation, prepared, 0, index)
        assert np.array_equal(pixels, whole[:, ::-1] if flip else whole)
        flips.append(flip)
    assert 0.4 < np.mean(flips) < 0.6
    assert not any(augmented(Augmentation(16, augment="none", flip=False), prepared, 0, i)[1] for i in range(20))


def largest_centred_square(pixels: np.ndarray) -> Image.Image:
    """Found by taking rows or columns off, one at either end in turn, the last first."""
    end = True
    while pixels.shape[0] != pixels.shape[1]:
        axis = int(pixels.shape[1] > pixels.shape[0])
        pixels = np.delete(pixels, -1 if end else 0, axis)
        end = not end
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("height", "width"),
    [(50, 70), (70, 50), (51, 70), (50, 71), (71, 50), (16, 16), (16, 29), (30, 16), (5, 9), (9, 4), (1, 1), (1, 8)],
)
def test_center_is_pillows_resize_of_the_largest_centred_square(height, width):
    image = picture(height, width)
    image = image._replace(pixels=(image.pixels // 2 + 64))  # no overshoot to be clipped
    augmentation = Augmentation(16, augment="center", flip=False)
    square = largest_centred_square(image.pixels)
    left, top, right, bottom = center_box((height, width))
    assert np.array_equal(image.pixels[top:bottom, left:right], square)
    prepared = reused(augmentation, image)
    for epoch, index in [(0, 0), (3, 5)]:
        actual, flip = augmented(augmentation, prepared, epoch, index)
        assert not flip
        again, _ = augmented(augmentation, image, epoch, index)  # from the whole picture
        assert np.array_equal(actual, again)
        # Pillow may look at pixels beside the square too, which `crop` would hide from it
        expected = Image.fromarray(image.pixels).resize(
            (16, 16), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
        )
        assert np.abs(actual.astype(int) - expected).max() <= 1
        if square.size == (16, 16):
            assert np.array_equal(actual, square)


def test_center_flips_where_asked():
    augmentation = Augmentation(16, augment="center")
    upright = reused(augmentation, picture(50, 70))
    flips = [augmented(augmentation, upright, 0, index) for index in range(40)]
    assert {flip for _, flip in flips} == {True, False}
    assert all(np.array_equal(pixels[:, ::-1] if flip else pixels, upright.pixels) for pixels, flip in flips)


def test_a_centre_crop_decodes_at_a_fraction():
    """An eighth of a 501 x 703 JPEG has 62 pixels: too few for 64, enough for 16."""
    for size, fraction in [(64, 4), (16, 8), (300, 1)]:
        data, augmentation = photo(501, 703), Augmentation(size, augment="center", flip=False)
        reduced = EncodedImage(data, "a").decode(augmentation.reduction(augmentation.draw((501, 703), 0, 0)[0]))
        assert reduced.reduction == fraction
        square = largest_centred_square(EncodedImage(data, "a").decode().pixels)
        assert square.size == (501, 501)
        expected = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC), float)
        actual = augmented(augmentation, reused(augmentation, reduced), 0, 0)[0].astype(float)
        assert np.abs(actual - expected).mean() < 2
        error = {dx: np.square(actual - np.roll(expected, dx, 1))[2:-2, 2:-2].mean() for dx in (-1, 0, 1)}
        assert error[0] < 0.2 * min(error[-1], error[1])


def test_stored_crops_come_again_whatever_the_seed():
    image = picture(50, 70)
    crops = [
        augmented(Augmentation(16, flip=False, seed=s, stored_crops=3), image, e, 7)[0] for e, s in enumerate([0] * 6)
    ]
    assert all(np.array_equal(crops[e], crops[e + 3]) for e in range(3))
    assert len({crop.tobytes() for crop in crops}) == 3
    other = Augmentation(16, seed=5, stored_crops=3)
    flips = set()
    for epoch in range(0, 30, 3):
        pixels, flip = augmented(other, image, epoch, 7)
        assert np.array_equal(pixels[:, ::-1] if flip else pixels, crops[0])
        flips.add(flip)
    assert flips == {True, False}


def photo(height: int, width: int, **options) -> bytes:
    """A JPEG with edges and texture at several scales, with little power in the finest, as photographs have."""
    rng = np.random.default_rng(3)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (4, 8, 16, 32, 64, 128)]
    reductions = [np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), float) for layer in layers]
    mixed = sum(0.6**i * layer for i, layer in enumerate(reductions)) / sum(0.6**i for i in range(6))
    pixels = (mixed + 60 * (np.hypot(*np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]) < 0.6)[..., None]).clip(
        0, 255
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def test_a_reduced_decode_is_close_to_the_full_one():
    """As close as another resampling filter: a level or two of 255 on average, nowhere shifted."""
    data, augmentation = photo(501, 703), Augmentation(64, flip=False)
    full, reductions = EncodedImage(data, "a").decode(), set()
    for index in range(12):
        box, _ = augmentation.draw((501, 703), 0, index)
        reduced = EncodedImage(data, "a").decode(augmentation.reduction(box))
        assert reduced.extent == full.extent == (501, 703)
        assert reduced.pixels.shape[1] == -(-703 // reduced.reduction)
        reductions.add(reduced.reduction)
        expected, actual = (augmented(augmentation, p, 0, index)[0].astype(float) for p in (full, reduced))
        assert np.abs(actual - expected).mean() < 2
        inner = actual[4:-4, 4:-4]
        error = {dx: np.square(inner - np.roll(expected, dx, 1)[4:-4, 4:-4]).mean() for dx in (-1, 0, 1)}
        assert error[0] < 0.2 * min(error[-1], error[1])
    assert len(reductions) > 1 and max(reductions) > 2


def test_what_is_turned_or_no_jpeg_is_decoded_whole():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = EncodedImage(photo(300, 400, exif=exif), "a").decode(4)
    assert (turned.extent, turned.reduction, turned.pixels.shape) == ((400, 300), 1, (400, 300, 3))
    buffer = io.BytesIO()
    Image.fromarray(noise(30, 40)).save(buffer, "PNG")
    assert EncodedImage(buffer.getvalue(), "a").decode(4).reduction == 1


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
    assert Augmentation.from_config(data, 32, 7) == Augmentation(32, "none", (0.5, 1.0), (1.0, 2.0), False, 7)
    for key, value in {"augment": "crops", "scale": (0.5,), "ratio": ()}.items():
        with pytest.raises(InputError, match=rf"data\.{key} is"):
            Augmentation.from_config(SimpleNamespace(**(vars(data) | {key: value})), 32, 7)


@pytest.mark.parametrize("options", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.2)}, {"ratio": (0.0, 1.0)}, {"seed": -1}])
def test_bad_options(options):
    with pytest.raises(InputError):
        Augmentation(16, **options)
