"""Reading ahead: many reads at once in each worker, the same batches for any chunk, and bounded shared memory."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from zeroseg_jax.data import read_ahead
from zeroseg_jax.data.augment import Augmentation
from zeroseg_jax.data.pipeline import ordered_batches, train_iterator
from zeroseg_jax.data.read_ahead import chunk_size
from zeroseg_jax.data.workers import resolve_workers, usable_cpus
from zeroseg_jax.errors import InputError

SIDE = 16


class Pixels:
    """64 images whose pixels are their numbers."""

    def __len__(self) -> int:
        return 64

    def key(self, i: int) -> str:
        return str(i)

    def read(self, i: int) -> np.ndarray:
        return np.full((SIDE, SIDE, 3), i, np.uint8)

    def __getitem__(self, i: int) -> dict:
        return {"image": self.read(i), "key": self.key(i)}


_begun: list[int] = []
_eight = threading.Event()


class Meeting(Pixels):
    """No read ends before eight have begun in the same process."""

    def read(self, i: int) -> np.ndarray:
        _begun.append(i)
        if len(_begun) == 8:
            _eight.set()
        assert _eight.wait(timeout=60)
        return super().read(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_reads_wait_side_by_side(workers, monkeypatch):
    """Chunks of one image, so that 8 threads read 8 images at once; with fewer threads no read would end."""
    monkeypatch.setattr(read_ahead, "CHUNK_BYTES", 1)
    options = {"batch_size": 8, "augmentation": Augmentation(SIDE, augment="none", flip=False), "cache_bytes": 0}
    with train_iterator(Meeting(), workers=workers, **options) as batches:
        for _ in range(2):
            batch = next(batches)
            assert (batch["image"][:, 0, 0, 0] == batch["index"]).all()


@pytest.mark.parametrize("chunk", [1, 4, 12])
def test_batches_do_not_depend_on_the_chunks(chunk, monkeypatch):
    def batches() -> list[np.ndarray]:
        with train_iterator(Pixels(), batch_size=12, augmentation=Augmentation(SIDE, seed=1)) as train:
            trained = [next(train)["image"] for _ in range(7)]
        ordered = ordered_batches(Pixels(), batch_size=12, augmentation=Augmentation(SIDE))
        return trained + [batch["image"] for batch in ordered]

    whole = batches()
    monkeypatch.setattr(read_ahead, "chunk_size", lambda *_: chunk)
    assert all(np.array_equal(a, b) for a, b in zip(whole, batches(), strict=True))


class Slow(Pixels):
    """A store that takes 30 ms for each read."""

    def __len__(self) -> int:
        return 4096

    def read(self, i: int) -> np.ndarray:
        time.sleep(0.03)
        return np.full((SIDE, SIDE, 3), i % 251, np.uint8)


@pytest.mark.end_to_end
def test_four_workers_reach_a_thousand_images_a_second_from_a_slow_store():
    """4 workers x 16 threads / 30 ms are 2133 images/s; one read after the other would give 133."""
    options = {"batch_size": 64, "augmentation": Augmentation(SIDE, augment="none"), "cache_bytes": 0}
    with train_iterator(Slow(), workers=4, **options) as fast, train_iterator(Slow(), workers=0, **options) as plain:
        for _ in range(10):
            batch, expected = next(fast), next(plain)
            assert all(np.array_equal(batch[name], expected[name]) for name in expected)
        plain.close()
        since = time.perf_counter()
        for _ in range(50):
            next(fast)
        assert 50 * 64 / (time.perf_counter() - since) > 1000


def test_chunks_fit_the_shared_memory(monkeypatch):
    image = 224 * 224 * 3
    free = 14 << 30
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    monkeypatch.setattr(read_ahead, "SHARED_MEMORY", Path("/"))
    assert chunk_size(256, 16, image) == 16  # 4 MiB hold 27 images
    assert chunk_size(250, 16, image) == 25 and chunk_size(13, 16, image) == 13 and chunk_size(29, 16, image) == 1
    free = 64 << 20  # what a container has
    assert chunk_size(256, 16, image) == 2 and chunk_size(256, 0, image) == 16
    with pytest.raises(InputError, match=r"has 64 MiB free, and data\.workers=16 needs 98 MiB there; .* --shm-size"):
        chunk_size(256, 16, 5 * image)
    monkeypatch.setattr(read_ahead, "SHARED_MEMORY", Path("/none"))
    assert chunk_size(256, 16, 5 * image) == 4


def test_workers_for_the_processors(monkeypatch):
    assert usable_cpus() >= 1 and resolve_workers(0) == 0 and resolve_workers(7) == 7
    for processors, workers in {1: 0, 2: 1, 12: 11, 208: 32}.items():
        monkeypatch.setattr("zeroseg_jax.data.workers.usable_cpus", lambda processors=processors: processors)
        assert resolve_workers(-1) == workers


SMALL = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from test_read_ahead import Pixels
from zeroseg_jax.data.augment import Augmentation
from zeroseg_jax.data.pipeline import train_iterator
from zeroseg_jax.errors import InputError

def used():
    space = os.statvfs("/dev/shm")
    return (space.f_blocks - space.f_bfree) * space.f_frsize

if __name__ == "__main__":
    with train_iterator(Pixels(), batch_size=64, augmentation=Augmentation(128, augment="none"), workers=2) as batches:
        assert next(batches)["image"].shape == (64, 128, 128, 3)
        most = 0
        for _ in range(20):  # the workers fill all there is to fill
            time.sleep(0.1)
            most = max(most, used())
        next(batches)
    print("used", most)
    try:
        next(train_iterator(Pixels(), batch_size=8, augmentation=Augmentation(512), workers=2))
    except InputError as error:
        print(error)
"""


@pytest.mark.end_to_end
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a mount of its own")
def test_on_a_small_shared_memory(tmp_path):
    """On 4 MiB, batches of 3 MiB come from two workers, which keep to half of it; and what cannot fit is refused."""
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    mount = "mount -t tmpfs -o size=4m tmpfs /dev/shm"
    inside = ["unshare", "--mount", "sh", "-c", f'{mount} || exit 77; exec "$@"', "sh"]
    command = [*inside, sys.executable, str(script), str(Path(__file__).parent)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if ran.returncode == 77 or "unshare failed" in ran.stderr:
        pytest.skip(f"no mounts here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    used, refusal = ran.stdout.splitlines()
    assert 0 < int(used.split()[1]) <= 2 << 20
    assert re.match(r"/dev/shm has [34] MiB free, and data\.workers=2 needs 19 MiB there; give", refusal)
