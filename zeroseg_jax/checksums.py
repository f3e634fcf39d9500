"""SHA-256 checksums of files, stored one for each line as `sha256sum` writes them."""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path


def sha256(path: Path) -> str:
    """The digest of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_of(folder: Path, names: Iterable[str], digest: Callable[[Path], str] = sha256) -> dict[str, str]:
    """The digest of each file in `names`, which are paths relative to `folder`."""
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # hashing releases the GIL
        return dict(zip(names, pool.map(lambda name: digest(folder / name), names), strict=True))


def write_sums(path: Path, sums: dict[str, str]) -> None:
    """Writes the file and waits until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in sums.items())
        file.flush()
        os.fsync(file.fileno())


def read_sums(path: Path) -> dict[str, str]:
    """The digests that `write_sums` wrote, by file name. Lines that are damaged are left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    parts = [line.split("  ", 1) for line in lines]
    return {part[1]: part[0] for part in parts if len(part) == 2}
