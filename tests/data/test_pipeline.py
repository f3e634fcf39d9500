"""The batches: the same for any number of workers, restorable, every image once an epoch, broken images counted."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.data.augment import Augmentation
from zeroseg_jax.data.pipeline import ordered_batches, train_iterator
from zeroseg_jax.data.resize import resize
from zeroseg_jax.data.sources.folder import FolderSource
from zeroseg_jax.errors import InputError

COUNT, BROKEN = 23, {4: b"", 11: None, 17: b"no image"}
"""Images of the folder, and those of its numbers that are broken (None: a truncated JPEG)."""


def jpeg(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (40, 30 + i, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def fill(folder: Path, broken: dict[int, bytes | None]) -> FolderSource:
    for i in range(COUNT):
        whole = jpeg(i)
        truncated = whole[: len(whole) // 2]
        data = broken.get(i, whole)
        (folder / f"{i:02d}.jpg").write_bytes(truncated if data is None else data)
    return FolderSource(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> FolderSource:
    return fill(tmp_path_factory.mktemp("whole"), {})


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> FolderSource:
    return fill(tmp_path_factory.mktemp("damaged"), BROKEN)


def take(source, batches: int, *, state=None, **options) -> list[dict]:
    options = {"batch_size": 4, "augmentation": Augmentation(16, seed=1), "log": lambda line: None} | options
    with train_iterator(source, **options) as iterator:
        if state:
            iterator.set_state(state)
        return [{name: np.array(a) for name, a in next(iterator).items()} for _ in range(batches)]


def assert_equal(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert np.array_equal(a[name], b[name]), name


def test_a_batch(whole):
    (batch,) = take(whole, 1)
    kinds = {name: (a.shape, a.dtype) for name, a in batch.items()}
    four = ((4,), np.dtype(np.int32))
    assert kinds == {
        "image": ((4, 16, 16, 3), np.dtype(np.uint8)),
        "index": four,
        "epoch": four,
        "flip": ((4,), np.dtype(bool)),
    }


@pytest.mark.end_to_end
def test_the_same_for_any_number_of_workers(damaged):
    """Twelve batches run into the third epoch and meet every broken image."""
    logs: dict[int, list[str]] = {}
    batches = {}
    for workers in (0, 1, 2):
        logs[workers] = []
        batches[workers] = take(damaged, 12, workers=workers, max_broken_share=0.3, log=logs[workers].append)
    assert_equal(batches[0], batches[1])
    assert_equal(batches[0], batches[2])
    assert logs[0] == logs[1] == logs[2] and len(logs[0]) == len(BROKEN)


def test_resume_in_the_middle_of_an_epoch_with_other_workers(damaged):
    options = {"max_broken_share": 0.5, "log": lambda line: None}
    straight = take(damaged, 9, **options)
    with train_iterator(damaged, batch_size=4, augmentation=Augmentation(16, seed=1), workers=1, **options) as iterator:
        for _ in range(4):
            assert all(type(array) is np.ndarray for array in next(iterator).values())  # not in shared memory
        state = json.loads(json.dumps(iterator.get_state()))
        next(iterator)  # what was read ahead does not count
        assert state == {"next_index": 16}
        iterator.set_state(state)
        assert np.array_equal(next(iterator)["image"], straight[4]["image"])
    assert_equal(take(damaged, 5, state=state, **options), straight[4:])


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_every_image_once_an_epoch_for_any_number_of_processes(whole, processes):
    """23 images in batches of 12, from the middle of an epoch on: the very batches of one process, part by part."""
    options = {"batch_size": 12 // processes, "process_count": processes, "state": {"next_index": 5}}
    parts = [take(whole, 6, process_index=p, **options) for p in range(processes)]
    joined = [
        {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        for batches in zip(*parts, strict=True)
    ]
    assert_equal(joined, take(whole, 6, batch_size=12, state={"next_index": 5}))
    index, epoch = (np.concatenate([batch[name] for batch in joined]) for name in ("index", "epoch"))
    assert epoch.tolist() == [0] * (COUNT - 5) + [1] * COUNT + [2] * COUNT + [3] * (5 + 6 * 12 - 3 * COUNT)
    for number in (1, 2):
        assert sorted(index[epoch == number]) == list(range(COUNT))
    assert not np.array_equal(index[epoch == 1], index[epoch == 2])


def test_the_seed_decides_order_and_crops(whole):
    first = take(whole, 3)
    assert_equal(first, take(whole, 3))
    other = take(whole, 3, augmentation=Augmentation(16, seed=2))
    assert not np.array_equal(first[0]["index"], other[0]["index"])


def test_images_are_those_of_the_index(whole):
    """Without crop an example can be compared with its image, and the memory cache changes nothing."""
    augmentation = Augmentation(24, augment="none", seed=5)
    batches = take(whole, 12, augmentation=augmentation)
    assert_equal(batches, take(whole, 12, augmentation=augmentation, cache_bytes=0))
    assert_equal(batches, take(whole, 12, augmentation=augmentation, cache_bytes=5 * 24 * 24 * 4))
    for batch in batches:
        for image, index, flip in zip(batch["image"], batch["index"], batch["flip"], strict=True):
            expected = resize(whole[int(index)]["image"], 24)
            assert np.array_equal(image, expected[:, ::-1] if flip else expected)


def test_large_photographs_give_the_same_whatever_is_kept_in_memory(tmp_path):
    """Some of their crops are decoded at half or a quarter of the size, in every epoch alike."""
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (70, 30 + 20 * i, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.jpg"
        )
    source = FolderSource(tmp_path)
    assert_equal(take(source, 9), take(source, 9, cache_bytes=0))
    assert_equal(take(source, 9), take(source, 9, workers=1))


def test_the_wait_for_batches_is_measured(whole):
    with train_iterator(whole, batch_size=4, augmentation=Augmentation(16)) as iterator:
        assert iterator.waited == 0
        next(iterator)
        first = iterator.waited
        next(iterator)
        assert 0 < first < iterator.waited


def test_broken_images_are_replaced_counted_and_named(damaged):
    lines: list[str] = []
    with train_iterator(
        damaged, batch_size=4, augmentation=Augmentation(16), max_broken_share=0.3, log=lines.append
    ) as iterator:
        seen = np.concatenate([next(iterator)["index"] for _ in range(12)])
        assert iterator.broken.keys() == BROKEN.keys()
    assert not set(seen.tolist()) & BROKEN.keys()
    assert set(seen.tolist()) == set(range(COUNT)) - BROKEN.keys()
    assert len(lines) == 3  # once each, though each was met in two epochs
    for i, reason in {4: "the file is empty", 11: "truncated", 17: "not in an image format"}.items():
        assert any(f"{i:02d}.jpg" in line and reason in line for line in lines)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_images_abort(damaged, workers):
    with pytest.raises(InputError, match=r"1 of the 23 images cannot be read.*max_broken_share=0\.04"):
        take(damaged, 12, workers=workers, max_broken_share=0.04)


def test_nothing_but_broken_images(tmp_path):
    source = fill(tmp_path, {i: b"?" for i in range(COUNT)})
    with pytest.raises(InputError, match="16 images in a row cannot be read"):
        take(source, 1, max_broken_share=1.0)


def test_ordered_batches_cover_all_once(damaged):
    """23 images on 2 hosts with batches of 5: three batches each, the last example of all is padding."""
    augmentation = Augmentation(24, augment="none")
    for process in range(2):
        options = {"process_index": process, "process_count": 2, "max_broken_share": 0.5, "log": lambda line: None}
        batches = list(ordered_batches(damaged, batch_size=5, augmentation=augmentation, **options))
        index, valid = (np.concatenate([b[name] for b in batches]) for name in ("index", "valid"))
        of_process = list(range(process, COUNT, 2))
        assert index.tolist() == of_process + [-1] * (15 - len(of_process))
        assert valid.tolist() == [i not in BROKEN for i in of_process] + [False] * (15 - len(of_process))
        images = np.concatenate([b["image"] for b in batches])
        expected = resize(damaged[of_process[1]]["image"], 24)
        assert np.array_equal(images[1], expected) and images.shape == (15, 24, 24, 3)
    with pytest.raises(InputError, match="max_broken_share"):
        list(ordered_batches(damaged, batch_size=5, augmentation=augmentation, log=lambda line: None))
