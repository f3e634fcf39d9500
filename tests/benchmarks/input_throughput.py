"""Decoding and augmentation on one core: this package's loader against torchvision's, on the same JPEGs in one run.

    python tests/benchmarks/input_throughput.py FOLDER --out DIR [--size 224] [--images 600] [--repeats 5] [--stored]

All sides read the images below FOLDER in random order, cut a random part (a fifth to all of the area), resize it to
--size with the same antialiased filter, mirror half of them and give uint8 batches of 32: ours with the loader of the
training loop, which keeps nothing in memory here; torchvision's as its documentation shows it (`default_loader`, which
is Pillow, and v2 transforms in a `DataLoader`), and its fastest way, which decodes to tensors and resizes those. Each
side is a process of its own on one core without workers; they take turns. Prints a table and writes
DIR/input_throughput.json: images per CPU-second, so that what else the machine does matters little. Needs torchvision.

With --stored it compares, without torchvision, what a run with stored embeddings reads: the largest centred squares of
the files, and the same squares as `zeroseg_jax.data.convert --center_crop` has stored them below DIR.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from zeroseg_jax.data.convert import main as main_of_convert

BATCH = 32
GOAL = 1.3
"""Images per CPU-second of ours by those of torchvision's loader."""
SIDES = ("ours", "torchvision, Pillow", "torchvision, tensors")
STORED = ("ours, stored squares", "ours, files")


def ours(folder: str, size: int, *, side: str) -> Callable[[int], int]:
    from zeroseg_jax.data.augment import Augmentation
    from zeroseg_jax.data.pipeline import train_iterator
    from zeroseg_jax.data.sources.array_record import ArrayRecordSource
    from zeroseg_jax.data.sources.folder import FolderSource

    source = ArrayRecordSource(folder, "all") if "squares" in side else FolderSource(folder, "all")
    augmentation = Augmentation(size) if side == "ours" else Augmentation(size, augment="center", flip=False)
    batches = train_iterator(source, batch_size=BATCH, augmentation=augmentation, cache_bytes=0)

    def run(images: int) -> int:
        for _ in range(images // BATCH):
            assert next(batches)["image"].shape == (BATCH, size, size, 3)
        # until the loader, which reads ahead, has filled its buffers again: each turn pays for as many as it takes
        busy = 1.0
        while busy > 0.01:
            since = time.process_time()
            time.sleep(0.5)
            busy = time.process_time() - since
        return images // BATCH * BATCH

    return run


def torchvision(folder: str, size: int, *, tensors: bool) -> Callable[[int], int]:
    import torch
    from torchvision.datasets.folder import default_loader
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    paths = sorted(str(path) for path in Path(folder).rglob("*.jpg"))
    steps = [v2.RandomResizedCrop(size, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)]
    steps += [v2.RandomHorizontalFlip()] + ([] if tensors else [v2.PILToTensor()])
    transform = v2.Compose(steps)

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> Any:
            return transform(decode_image(paths[i], ImageReadMode.RGB) if tensors else default_loader(paths[i]))

    loader = torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, drop_last=True)

    def run(images: int) -> int:
        done = 0
        while done < images:
            for batch in loader:
                assert batch.shape == (BATCH, 3, size, size) and batch.dtype == torch.uint8
                done += BATCH
                if done >= images:
                    break
        return done

    return run


def serve(side: str, folder: str, size: int, core: int, pipe: Any) -> None:
    """Answers every number of images with their number and the CPU-seconds that all threads took for them."""
    os.sched_setaffinity(0, {core})
    run = ours(folder, size, side=side) if "ours" in side else torchvision(folder, size, tensors="tensors" in side)
    run(4 * BATCH)  # imports, first batches, full buffers
    while images := pipe.recv():
        since = time.process_time()
        done = run(images)
        pipe.send((done, time.process_time() - since))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=600, help="in each turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stored", action="store_true", help="compare stored squares with the files")
    arguments = parser.parse_args()
    sides, folders = (STORED if arguments.stored else SIDES), {}
    if arguments.stored:
        folders[STORED[0]] = str(arguments.out / f"squares_{arguments.size}")
        words = ["--source", "folder", "--root", arguments.folder, "--split", "all", "--out", folders[STORED[0]]]
        if main_of_convert([*words, "--center_crop", str(arguments.size)]):
            sys.exit(2)
    context = multiprocessing.get_context("spawn")
    core = max(os.sched_getaffinity(0))
    pipes, speeds = {}, {side: [] for side in sides}
    for side in sides:
        pipes[side], theirs = context.Pipe()
        folder = folders.get(side, arguments.folder)
        process = context.Process(target=serve, args=(side, folder, arguments.size, core, theirs), daemon=True)
        process.start()
    for _ in range(arguments.repeats):
        for side, pipe in pipes.items():
            pipe.send(arguments.images)
            done, seconds = pipe.recv()
            speeds[side].append(done / seconds)
    for pipe in pipes.values():
        pipe.send(0)

    table = Table(title=f"images per CPU-second on one core, median (best) of {arguments.repeats} turns")
    for column in ("loader", "images / CPU s", f"{sides[0]} / this"):
        table.add_column(column, justify="left" if column == "loader" else "right")
    medians = {side: float(np.median(rates)) for side, rates in speeds.items()}
    for side, rates in speeds.items():
        table.add_row(side, f"{medians[side]:.0f} ({max(rates):.0f})", f"{medians[sides[0]] / medians[side]:.2f}")
    if not arguments.stored:
        table.caption = f"the goal is {GOAL:g} times torchvision's loader"
    result = {"size": arguments.size, "images_per_cpu_second": speeds, "median": medians}
    name = "stored_squares" if arguments.stored else "input_throughput"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
