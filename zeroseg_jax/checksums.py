"""SHA-256 checksums of files, stored one for each line as `sha256sum` writes them."""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Iterable

from zeroseg_jax.storage import AnyPath, is_remote, store


def sha256(path: AnyPath) -> str:
    """The digest of a file's bytes, in hexadecimal.

    For an object in a bucket it is the CRC-32C that the store keeps of it, so nothing is downloaded.
    """
    if is_remote(path):
        store().invalidate_cache(os.fspath(path.parent))
        return f"crc32c:{store().info(os.fspath(path))['crc32c']}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_of(folder: AnyPath, names: Iterable[str], digest: Callable[[AnyPath], str] = sha256) -> dict[str, str]:
    """The digest of each file in `names`, which are paths relative to `folder`."""
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # hashing releases the GIL
        return dict(zip(names, pool.map(lambda name: digest(folder / name), names), strict=True))


def write_sums(path: AnyPath, sums: dict[str, str]) -> None:
    """Writes the file and waits until it is on the disk."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    if is_remote(path):
        path.write_bytes(text.encode())
        return
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_sums(path: AnyPath) -> dict[str, str]:
    """The digests that `write_sums` wrote, by file name. Lines that are damaged are left out."""
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    parts = [line.split("  ", 1) for line in lines]
    return {part[1]: part[0] for part in parts if len(part) == 2}
