"""The teacher's embeddings of every training image, computed once: a step then costs the student alone.

An image has `teacher.cached_crops` forms (one with `data.augment` "center" or "none", where no crop is random), twice
as many with `data.flip`. A folder holds `manifest.json`, which says what the embeddings are of, and ArrayRecord shards
with one float16 array (views, width) for each form of each image: first by image, in the order of the source, then by
crop, then as it is and mirrored. Beside each shard lies its SHA-256, as `sha256sum` writes it. Shards appear when they
are complete, so a killed run goes on where it stopped; a damaged shard is computed again.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter
from grain.sources import ArrayRecordDataSource
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float16, Int
from ml_collections import ConfigDict

from zeroseg_jax.checksums import read_sums, sha256, write_sums
from zeroseg_jax.data.augment import Augmentation
from zeroseg_jax.data.decode import BrokenImage
from zeroseg_jax.data.sources.open import ImageSource
from zeroseg_jax.data.sources.sample import check_sample
from zeroseg_jax.distill.embed import embed_in_order, readable_flops
from zeroseg_jax.distill.model_flops import teacher_flops
from zeroseg_jax.distill.teacher import Teacher, fingerprint
from zeroseg_jax.errors import InputError
from zeroseg_jax.storage import AnyPath, is_remote, store, to_path, write_text
from zeroseg_jax.workdir import hold

SHARD = 1024
"""Images in a shard."""
IN_MEMORY = 4 << 30
"""Bytes of embeddings up to which all of them are read into memory; larger caches are read record by record."""


class TeacherCache:
    """The embeddings in a complete folder, which `open_cache` has checked.

    Raises:
        InputError: a shard is missing.
    """

    def __init__(self, folder: AnyPath):
        manifest = _read_manifest(folder)
        shards = _shards(folder, manifest["data.images"])
        if missing := [shard for shard in shards if not shard.exists()]:
            raise InputError(f"{missing[0]} is missing; teacher.cache must be a folder that all processes see")
        self._crops, self._forms = manifest["teacher.cached_crops"], 2 if manifest["data.flip"] else 1
        self._shape = (len(manifest["views"]), manifest["embed_dim"])
        self._folder, self._records = folder, ArrayRecordDataSource([str(path) for path in shards])
        self._all = None
        if len(self._records) * 2 * np.prod(self._shape) <= IN_MEMORY:
            self._all = self._read(range(len(self._records)))

    def __call__(
        self, index: Int[np.ndarray, " b"], epoch: Int[np.ndarray, " b"], flip: Bool[np.ndarray, " b"]
    ) -> Float16[np.ndarray, "b v d"]:
        """Unit-length embeddings of the views of images `index`, cropped as in `epoch`, mirrored where `flip`."""
        records = (index.astype(np.int64) * self._crops + epoch % self._crops) * self._forms + flip
        return self._read(records) if self._all is None else self._all[records]

    def _read(self, records: Any) -> np.ndarray:
        try:
            encoded = self._records.__getitems__([int(i) for i in records])
        except RuntimeError as error:  # damage since the start: ArrayRecord checks what it reads
            raise InputError(
                f"a shard in {self._folder} cannot be read ({error}); start again, which computes it anew"
            ) from error
        return np.stack([np.frombuffer(record, np.float16).reshape(self._shape) for record in encoded])


def cache_folder(config: ConfigDict, workdir: AnyPath) -> AnyPath:
    """`config.teacher.cache`, or `teacher_cache` in the workdir."""
    return to_path(config.teacher.cache) if config.teacher.cache else workdir / "teacher_cache"


def augmentation_of(config: ConfigDict) -> Augmentation:
    """The augmentation of a run: with cached embeddings, exactly the crops that were embedded."""
    crops = config.teacher.cached_crops if config.teacher.source == "cache" else 0
    return Augmentation.from_config(config.data, config.image_size, config.seed, stored_crops=crops)


def open_cache(teacher: Teacher, source: ImageSource, config: ConfigDict, workdir: AnyPath) -> TeacherCache:
    """The cache that `config` asks for; what is missing of it is computed first, by all processes together.

    The folder must be one that all processes see.

    Raises:
        InputError: the folder holds embeddings of another teacher, other views, another image size, other
            augmentations or other images, its manifest is damaged, another run writes to it, or too many images are
            broken.
    """
    folder = cache_folder(config, workdir)
    wanted = manifest(teacher, source, config)
    shards = _shards(folder, len(source))
    if (folder / "manifest.json").exists():
        _check_manifest(_read_manifest(folder), wanted, folder)
    missing = _missing(_of_this_process(shards))
    if _anywhere(bool(missing) or not (folder / "manifest.json").exists()):
        check_sample(source, config.data.max_broken_share)
        with hold(folder, "stores the teacher's embeddings"):
            if jax.process_index() == 0:
                write_text(folder / "manifest.json", json.dumps(wanted) + "\n")
            _wait_for_all("teacher cache manifest")
            embed_images(teacher, source, config, folder, _missing(missing))
            _wait_for_all("teacher cache shards")
    return TeacherCache(folder)


def _anywhere(here: bool) -> bool:
    """Whether it is true in any process."""
    return bool(np.any(multihost_utils.process_allgather(np.array(here))) if jax.process_count() > 1 else here)


def _missing(shards: list[AnyPath]) -> list[AnyPath]:
    """Those that are not there or are damaged."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # hashing releases the GIL
        return [shard for shard, sound in zip(shards, pool.map(_is_sound, shards), strict=True) if not sound]


def _is_sound(shard: AnyPath) -> bool:
    if not shard.exists():
        return False
    checksum = _checksum_file(shard)
    if checksum.exists() and read_sums(checksum).get(shard.name) == sha256(shard):
        return True
    logging.warning("%s is damaged, its checksum differs; it is computed again", shard)
    return False


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def manifest(teacher: Teacher, source: ImageSource, config: ConfigDict) -> dict[str, Any]:
    """What the embeddings depend on, by the config keys that decide it; JSON-able."""
    crop = config.data.augment == "crop"
    return {
        "teacher.path": config.teacher.path,
        "teacher.weights": fingerprint(teacher),
        "teacher.configuration": teacher.configuration,
        "embed_dim": teacher.embed_dim,
        "dtype": config.dtype,
        "views": np.round(teacher.boxes, 9).tolist(),
        "views.local_size": config.views.local_size,
        "image_size": config.image_size,
        "data.augment": config.data.augment,
        "data.flip": config.data.flip,
        "data.scale": list(config.data.scale) if crop else None,
        "data.ratio": list(config.data.ratio) if crop else None,
        "teacher.cached_crops": config.teacher.cached_crops,
        "data.images": len(source),
        "data.fingerprint": _source_fingerprint(source),
    }


def _read_manifest(folder: AnyPath) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds a {type(manifest).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{folder / 'manifest.json'} is damaged ({error}), so it is unknown what the embeddings beside it are of;"
            f" remove {folder}, and they are computed again"
        ) from error
    return manifest


def _check_manifest(present: dict[str, Any], wanted: dict[str, Any], folder: AnyPath) -> None:
    there, here = _flat(present), _flat(wanted)
    keys = [key for key in here | there if there.get(key) != here.get(key)]
    if not any(key.startswith(("teacher.weights", "teacher.configuration")) for key in keys):
        keys = [key for key in keys if key != "teacher.path"]  # the same teacher may lie in another folder
    if "data.augment" in keys:  # only "crop" has the two
        keys = [key for key in keys if key not in ("data.scale", "data.ratio")]
    if not keys:
        return
    differences = [f"{key} ({_difference(key, there.get(key), here.get(key))})" for key in keys]
    raise InputError(
        f"the teacher's embeddings in {folder} differ from what the config asks for in {', '.join(differences)};"
        " set teacher.cache to another folder, or remove this one"
    )


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the entries of the teacher's configuration among its own."""
    configuration = manifest.get("teacher.configuration", {})
    flat = {key: value for key, value in manifest.items() if key != "teacher.configuration"}
    return flat | {f"teacher.configuration.{key}": value for key, value in configuration.items()}


def _difference(key: str, there: Any, here: Any) -> str:
    """The two values of a key that differ, in a few words."""
    if key == "views" and there and here:
        if len(there) != len(here):
            return f"{len(there)} views there, {len(here)} here"
        first = next(i for i in range(len(here)) if there[i] != here[i])
        return f"view {first} is {there[first]} there, {here[first]} here"
    return f"{there} there, {here} here"


def _source_fingerprint(source: ImageSource) -> str:
    """A hash of some names and some pixels, spread over the source."""
    digest = hashlib.sha256()
    for i in np.unique(np.linspace(0, len(source) - 1, 16).astype(int)).tolist():
        digest.update(source.key(i).encode())
        try:
            digest.update(np.ascontiguousarray(source[i]["image"]).tobytes())
        except BrokenImage:
            continue
    return digest.hexdigest()[:16]


def _shards(folder: AnyPath, images: int) -> list[AnyPath]:
    count = -(-images // SHARD)
    return [folder / f"embeddings-{i:05d}-of-{count:05d}.array_record" for i in range(count)]


def _of_this_process(shards: list[AnyPath]) -> list[AnyPath]:
    """The shards of this process."""
    return shards[jax.process_index() :: jax.process_count()]


def _checksum_file(shard: AnyPath) -> AnyPath:
    return shard.with_name(shard.name + ".sha256")


def embed_images(
    teacher: Teacher, source: ImageSource, config: ConfigDict, folder: AnyPath, missing: Sequence[AnyPath]
) -> None:
    """Computes the shards `missing` in `folder`, with a progress bar.

    Raises:
        InputError: more than the allowed share of all images is broken, or `folder` cannot be written to.
    """
    for shard in missing:
        shard.unlink(missing_ok=True)
    if jax.process_index() == 0:
        tell_size(teacher, source, config, folder)
    if not missing:
        return
    parts = {s: range(i * SHARD, min((i + 1) * SHARD, len(source))) for i, s in enumerate(_shards(folder, len(source)))}
    crops = config.teacher.cached_crops
    augmentation = dataclasses.replace(augmentation_of(config), stored_crops=crops)
    images = [i for shard in missing for i in parts[shard]]
    done, broken, allowed = 0, 0, config.data.max_broken_share * len(source) * crops
    # one pass over all shards, so that the devices do not wait where one ends
    with contextlib.ExitStack() as stack:
        embedding_pass = embed_in_order(teacher, source, config, augmentation, images)
        crops_embedded = stack.enter_context(contextlib.closing(embedding_pass))
        temporary = stack.enter_context(tempfile.TemporaryDirectory()) if is_remote(folder) else ""
        for shard in missing:
            # ArrayRecord writes to the disk alone; `_finish` uploads
            unfinished = Path(temporary) / shard.name if temporary else shard.with_name(f"{shard.name}.tmp")
            # random access; floats hardly shrink
            writer = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
            for embedded in itertools.islice(crops_embedded, len(parts[shard]) * crops):
                for embedding in embedded.embeddings:
                    writer.write(embedding.tobytes())
                done, broken = done + 1, broken + (not embedded.valid)
                if broken > allowed:
                    raise InputError(
                        f"{broken // crops} of the first {done // crops} images cannot be read, more than"
                        f" data.max_broken_share={config.data.max_broken_share:g} of the {len(source)} there are; the"
                        " log names them: repair them, or allow a greater share"
                    )
                if not writer.ok():  # what went wrong is told by close
                    break
            _close(writer, shard)
            _finish(unfinished, shard)


def _close(writer: Any, shard: AnyPath) -> None:
    reason = "" if writer.ok() else "the disk takes no more"
    try:
        writer.close()
    except RuntimeError as error:  # ArrayRecord's, for whatever the disk says
        reason = str(error).split(";")[0]
    if reason:
        raise InputError(
            f"{shard} cannot be written ({reason}); make room, and start again, which goes on after the complete shards"
        )


def tell_size(teacher: Teacher, source: ImageSource, config: ConfigDict, folder: AnyPath) -> None:
    """Logs how large the cache becomes, what of it is missing, and how many FLOPs that takes."""
    forms = config.teacher.cached_crops * (2 if config.data.flip else 1)
    views, width, images = len(teacher.boxes), teacher.embed_dim, len(source)
    todo = sum(min(SHARD, images - i * SHARD) for i, shard in enumerate(_shards(folder, images)) if not shard.exists())
    if not todo:
        return
    size = 2 * forms * views * width
    flops = forms * teacher_flops(teacher.sizes, teacher.boxes, config.image_size, config.views.local_size)
    logging.info(
        "the teacher's embeddings take %s in %s: %d images x %s%d views x %d numbers in float16; those of %d images are"
        " missing, %s and %s",
        *(readable_bytes(size * images), folder, images, f"{forms} forms x " if forms > 1 else "", views, width),
        *(todo, readable_bytes(size * todo), readable_flops(flops * todo)),
    )
    if not is_remote(folder) and (free := shutil.disk_usage(folder).free) < size * todo:
        logging.warning("only %s are free in %s; set teacher.cache to a larger disk", readable_bytes(free), folder)


def readable_bytes(size: int) -> str:
    """As "59.0 GB"."""
    power = int(math.log10(max(size, 1)) / 3 + 1e-9)
    return f"{size / 1000**power:.1f} {('', 'k', 'M', 'G', 'T', 'P')[power]}B"


def _finish(unfinished: AnyPath, shard: AnyPath) -> None:
    """Gives a shard its name, after its checksum: what has the name is complete, also when the machine goes down."""
    if is_remote(shard):
        store().put_file(str(unfinished), os.fspath(shard))
        write_sums(_checksum_file(shard), {shard.name: sha256(shard)})
        unfinished.unlink()
        return
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    write_sums(_checksum_file(shard), {shard.name: sha256(unfinished)})
    unfinished.rename(shard)
