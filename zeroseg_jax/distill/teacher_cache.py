"""The teacher's embeddings of every training image, computed once: a step then costs the student alone.

Views are fixed boxes of the whole image, so with `data.augment="none"` an image has only two forms, as it is and
mirrored. A folder holds `manifest.json`, which says what the embeddings are of, and ArrayRecord shards with one float16
array (forms, views, width) for each image, in the order of the source. Shards appear when they are complete, so a
killed run goes on where it stopped.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from grain.sources import ArrayRecordDataSource
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Float16, Int, UInt8
from ml_collections import ConfigDict

from zeroseg_jax.data.decode import BrokenImage
from zeroseg_jax.data.images import ImageSource
from zeroseg_jax.data.pipeline import ordered_batches
from zeroseg_jax.distill.teacher import Teacher, fingerprint
from zeroseg_jax.errors import InputError
from zeroseg_jax.log import ProgressBar

SHARD = 1024
"""Images in a shard."""
IN_MEMORY = 4 << 30
"""Bytes of embeddings up to which all of them are read into memory; larger caches are read record by record."""


class TeacherCache:
    """The embeddings in a complete folder of `n` images."""

    def __init__(self, folder: Path):
        manifest = json.loads((folder / "manifest.json").read_text())
        self._shape = (manifest["forms"], len(manifest["views"]), manifest["embed_dim"])
        self._records = ArrayRecordDataSource([str(path) for path in _shards(folder, manifest["images"])])
        self._all = None
        if len(self._records) * 2 * np.prod(self._shape) <= IN_MEMORY:
            self._all = self._read(range(len(self._records)))

    def __call__(self, index: Int[np.ndarray, " b"], flip: Bool[np.ndarray, " b"]) -> Float16[np.ndarray, "b v d"]:
        """Unit-length embeddings of the views of images `index`, of their mirror images where `flip`."""
        if self._all is not None:
            return self._all[index, flip.astype(int)]
        return self._read(index)[np.arange(len(index)), flip.astype(int)]

    def _read(self, indices: Any) -> np.ndarray:
        records = self._records.__getitems__([int(i) for i in indices])
        return np.stack([np.frombuffer(record, np.float16).reshape(self._shape) for record in records])


class _Span:
    """The images `start` to `stop` - 1 of a source."""

    def __init__(self, source: ImageSource, start: int, stop: int):
        self._source, self._start, self._stop = source, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def key(self, i: int) -> str:
        return self._source.key(self._start + i)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._source[self._start + i]


def cache_folder(config: ConfigDict, workdir: Path) -> Path:
    """`config.teacher.cache`, or `teacher_cache` in the workdir."""
    return Path(config.teacher.cache).expanduser() if config.teacher.cache else workdir / "teacher_cache"


def open_cache(teacher: Teacher, source: ImageSource, config: ConfigDict, workdir: Path) -> TeacherCache:
    """The cache that `config` asks for; what is missing of it is computed first.

    Raises:
        InputError: the folder holds embeddings of another teacher, other views, another image size or other images.
    """
    folder = cache_folder(config, workdir)
    wanted = manifest(teacher, source, config)
    path = folder / "manifest.json"
    if path.exists():
        found = json.loads(path.read_text())
        different = sorted(key for key in wanted if found.get(key) != wanted[key])
        if different:
            raise InputError(
                f"the teacher's embeddings in {folder} differ from what the config asks for in {', '.join(different)};"
                " set teacher.cache to another folder, or remove this one"
            )
    elif jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted) + "\n")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("teacher cache manifest")
    embed_images(teacher, source, config, folder)
    return TeacherCache(folder)


def manifest(teacher: Teacher, source: ImageSource, config: ConfigDict) -> dict[str, Any]:
    """What the embeddings depend on; JSON-able."""
    return {
        "teacher": fingerprint(teacher),
        "dtype": config.dtype,
        "views": np.round(teacher.boxes, 9).tolist(),
        "embed_dim": teacher.embed_dim,
        "image_size": config.image_size,
        "forms": 2 if config.data.flip else 1,
        "images": len(source),
        "source": _source_fingerprint(source),
    }


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


def _shards(folder: Path, images: int) -> list[Path]:
    count = -(-images // SHARD)
    return [folder / f"embeddings-{i:05d}-of-{count:05d}.array_record" for i in range(count)]


def embed_images(teacher: Teacher, source: ImageSource, config: ConfigDict, folder: Path) -> None:
    """Computes the shards that are missing in `folder`, those of this process, with a progress bar."""
    forms = 2 if config.data.flip else 1
    shards = _shards(folder, len(source))
    devices = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
    split = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec("data"))
    batch_size = (config.teacher.chunk or 32) * len(jax.local_devices())

    @jax.jit
    def embed(params: Any, images: UInt8[Array, "b y x 3"]) -> Float[Array, "b f v d"]:
        both = jnp.stack([images, images[:, :, ::-1]][:forms], axis=1)
        embeddings = teacher.embed(params, both.reshape(-1, *images.shape[1:]))
        return embeddings.reshape(len(images), forms, *embeddings.shape[1:]).astype(jnp.float16)

    params = jax.device_put(teacher.params, jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec()))
    mine = [i for i in range(len(shards)) if i % jax.process_count() == jax.process_index()]
    missing = [i for i in mine if not shards[i].exists()]
    total = sum(min(SHARD, len(source) - i * SHARD) for i in missing)
    bar, done = ProgressBar("embed", total), 0
    for i in missing:
        span = _Span(source, i * SHARD, min((i + 1) * SHARD, len(source)))
        unfinished = shards[i].with_name(f".unfinished-{shards[i].name}")
        writer = ArrayRecordWriter(str(unfinished), "group_size:1")
        for batch in ordered_batches(
            span,
            batch_size=batch_size,
            image_size=config.image_size,
            workers=config.data.workers,
            max_broken_share=1.0,  # counted over the whole set, by the training that follows
        ):
            embeddings = np.array(embed(params, jax.device_put(batch["image"], split)))
            # a broken image is never drawn for training; were it drawn, the NaN would stop the run
            embeddings[~batch["valid"]] = np.nan
            for embedding in embeddings[batch["index"] >= 0]:
                writer.write(embedding.tobytes())
                done += 1
            bar.update(done, "images")
        writer.close()
        unfinished.rename(shards[i])
    bar.close()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("teacher cache shards")
