"""Fetches the files of a model from the Hugging Face hub, and uploads a folder to it."""

import importlib
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroseg_jax.errors import InputError

TRIES = 5
"""Attempts to download a file, with pauses of 1, 2, 4 and 8 seconds."""
HEAD_TRIES = 3
"""Attempts to ask the hub about a file, if the hub does not answer or is busy."""
BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which another attempt may succeed."""


@dataclass(frozen=True)
class HubModel:
    """A model on the hub at one commit. Its files are fetched one by one into the hub's usual cache."""

    id: str
    commit: str
    reachable: bool = True
    """Whether files can be fetched. If not, only the files in the cache can be used."""

    def has(self, name: str) -> bool:
        """Whether the model has a file. Fetches nothing. Raises InputError if the hub does not answer."""
        cached = _cached(self.id, name, self.commit)
        if cached is None and self.reachable:
            return _head(self.id, name, self.commit) is not None
        return isinstance(cached, str)

    def fetch(self, name: str) -> Path | None:
        """The local copy of a file, or None if the model does not have it. Fetches the file if it is not in the cache.

        Raises InputError if the hub refuses the file or every attempt fails.
        """
        cached = _cached(self.id, name, self.commit)
        if cached is None and self.reachable:
            return _fetch(self.id, name, self.commit)
        return Path(cached) if isinstance(cached, str) else None


def open_hub_model(source: str, names: tuple[str, ...]) -> HubModel:
    """The model `owner/name` or `owner/name@revision`, which must have one of the files `names`.

    A revision is a branch, a tag, a commit or refs/pr/N. Only the first existing file of `names` is fetched. If the hub
    cannot be reached, or HF_HUB_OFFLINE is set, a copy in the cache is used.

    Raises:
        InputError: there is no such model or revision, the model is gated, or the hub cannot be reached and the cache
            has no copy.
    """
    from huggingface_hub import constants

    name, _, revision = source.partition("@")
    revision = revision or "main"
    for file_name in names:
        cached = _cached(name, file_name, revision)
        try:
            fetched = _fetch(name, file_name, revision)
        except InputError as error:
            if not isinstance(cached, str):
                raise
            if not constants.HF_HUB_OFFLINE:
                logging.warning("%s; the copy in the cache is used", error)
            return HubModel(name, Path(cached).parent.name, reachable=False)
        if fetched is not None:
            return HubModel(name, fetched.parent.name)
    raise InputError(f"{source} on the Hugging Face hub has neither {' nor '.join(names)}, so it cannot be read")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name or owner/name@revision, and does not start like a path."""
    return re.fullmatch(r"[^./~@][^/@]*/[^/@]+(@.+)?", name) is not None


def _cached(repo: str, name: str, revision: str) -> Any:
    """The path (str) of a file in the cache, None if it is unknown, another object if the model does not have it."""
    import huggingface_hub  # takes half a second, which local folders do not need
    from huggingface_hub.errors import HFValidationError

    try:
        return huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
    except HFValidationError as error:
        raise _refusal(repo, revision, error) from error


def _head(repo: str, name: str, revision: str) -> Any:
    """The hub's data about a file, such as its size; None if the model does not have it.

    Raises InputError if the hub refuses or does not answer.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.errors import HTTPError as TransferError  # of httpx or requests, by the hub's version

    url = huggingface_hub.hf_hub_url(repo, name, revision=revision)
    for attempt in range(HEAD_TRIES):
        try:
            return huggingface_hub.get_hf_file_metadata(url)
        except EntryNotFoundError:
            return None
        except (TransferError, OSError) as error:
            status = _status(error)
            if status == 404 and not isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
                return None  # a mirror whose answer does not say what is missing
            if huggingface_hub.constants.HF_HUB_OFFLINE or attempt == HEAD_TRIES - 1 or (status and status not in BUSY):
                raise _refusal(repo, revision, error) from error
            time.sleep(1)
    raise AssertionError("the last try returns or raises")


def _fetch(repo: str, name: str, revision: str) -> Path | None:
    """Fetches one file, with several attempts; None if the model does not have it.

    Within one attempt huggingface_hub continues a download after a broken connection (`_resets_are_timeouts`).
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.errors import HTTPError as TransferError

    metadata = _head(repo, name, revision)
    if metadata is None:
        with suppress(EntryNotFoundError):  # this makes the cache remember that the file does not exist
            huggingface_hub.hf_hub_download(repo, name, revision=revision)
        return None
    if not sys.stderr.isatty() and not isinstance(_cached(repo, name, revision), str):
        # on a terminal huggingface_hub shows a progress bar instead
        size = f", {metadata.size / 1e6:.1f} MB" if metadata.size else ""
        print(f"fetching {repo}: {name}{size}", file=sys.stderr, flush=True)
    for attempt in range(TRIES):
        try:
            with _resets_are_timeouts():
                return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError as error:  # the connection was lost after `_head`
            raise _refusal(repo, revision, error) from error
        except (TransferError, OSError) as error:
            status, on_disk = _status(error), isinstance(error, OSError) and error.errno is not None
            if on_disk or attempt == TRIES - 1 or (status and status not in BUSY):
                raise _refusal(repo, revision, error) from error
            print(f"{name} of {repo}: {_reason(error)}; again in {2**attempt} s", file=sys.stderr, flush=True)
            time.sleep(2**attempt)
    raise AssertionError("the last try returns or raises")


@contextmanager
def _resets_are_timeouts() -> Iterator[None]:
    """Reports a connection that is reset during a download as a timeout.

    huggingface_hub continues a download after a timeout or a closed connection. After a reset it would start again.
    """
    import huggingface_hub

    session = huggingface_hub.get_session()
    http: Any = importlib.import_module(type(session).__module__.partition(".")[0])  # httpx or httpx2, by the version

    class Stream(http.SyncByteStream):  # type: ignore[name-defined,misc]
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self.stream
            except http.ReadError as error:
                raise http.ReadTimeout(str(error)) from error

        def close(self) -> None:
            self.stream.close()

    def wrap(response: Any) -> None:
        response.stream = Stream(response.stream)

    session.event_hooks["response"].append(wrap)
    try:
        yield
    finally:
        session.event_hooks["response"].remove(wrap)


def _status(error: Any) -> int | None:
    """The HTTP status in an error, or None if the hub did not answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _refusal(repo: str, revision: str, error: Any) -> InputError:
    """Turns an error of the hub into one sentence for the user."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, HFValidationError):
        return InputError(f"{repo} is neither a folder here nor a well-formed hub id owner/name ({_reason(error)})")
    if isinstance(error, GatedRepoError):
        return InputError(
            f"{repo} is gated: accept its licence at {constants.ENDPOINT}/{repo}, log in here with `hf auth login`, and"
            " try again"
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"there is neither a folder {repo} here nor a model of that name on the Hugging Face hub; check the"
            " spelling, and where the model is private log in with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{repo} has no revision {revision!r}; give one of its branches, tags or commits after the @")
    if constants.HF_HUB_OFFLINE:
        return InputError(
            f"{repo} is neither a folder here nor in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids"
            " fetching it; unset it, or give the folder of a downloaded copy"
        )
    if isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__ or error
    status = _status(error)
    if status in (401, 403):
        return InputError(
            f"the Hugging Face hub does not give {repo} to you (status {status}); log in with `hf auth login`, with a"
            " token that may read it"
        )
    if status is not None:
        return InputError(f"the Hugging Face hub refuses {repo} with the status {status}; try again later")
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return InputError(
            f"{repo} could not be stored in the cache ({error.filename}: {error.strerror}); make room or set HF_HOME"
        )
    return InputError(
        f"{repo} is not a folder here, and the Hugging Face hub ({constants.ENDPOINT}) could not be reached"
        f" ({_reason(error)}); check the connection, or give the folder of a downloaded copy"
    )


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def upload_folder(repo_id: str, folder: str | Path, *, private: bool = False, token: str | None = None) -> str:
    """Uploads a folder to the hub as the model `repo_id` ("owner/name"). Creates the model if it does not exist.

    `token` None means the token of `hf auth login`. Returns the address of the model. Raises InputError if the hub
    refuses the upload or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.errors import HTTPError as TransferError

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload by zeroseg_jax")
    except (HFValidationError, TransferError, OSError) as error:
        raise InputError(
            f"{repo_id} could not be uploaded to the Hugging Face hub ({_reason(error)});"
            " check the name owner/name, the connection, and the token (hf auth login)"
        ) from error
    return str(url)
