"""The Hugging Face hub: the files of a model that is named by its id, and the upload of a folder."""

import logging
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroseg_jax.errors import InputError

TRIES = 5
"""How often a broken download is tried, with pauses of 1, 2, 4 and 8 seconds."""


@dataclass(frozen=True)
class HubModel:
    """A model of the hub at one commit. Its files are fetched one by one, into the hub's usual cache."""

    id: str
    commit: str

    def has(self, name: str) -> bool:
        """Whether the model has a file, as far as can be told without fetching it."""
        import huggingface_hub
        from huggingface_hub.errors import HTTPError as TransferError

        cached = huggingface_hub.try_to_load_from_cache(self.id, name, revision=self.commit)
        if cached is not None:
            return isinstance(cached, str)
        try:
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(self.id, name, revision=self.commit))
        except (TransferError, OSError):  # no such file, or out of reach
            return False
        return True

    def fetch(self, name: str) -> Path | None:
        """The local copy of a file, fetched where it is not yet; None where the model has no such file.

        Raises InputError where the hub refuses it or the connection breaks for good.
        """
        import huggingface_hub

        cached = huggingface_hub.try_to_load_from_cache(self.id, name, revision=self.commit)
        if isinstance(cached, str):
            return Path(cached)
        if cached is not None:  # known from an earlier time that there is none
            return None
        return _fetch(self.id, name, self.commit, optional=True)


def open_hub_model(source: str, names: tuple[str, ...]) -> HubModel:
    """The model `owner/name` or `owner/name@revision` (a branch, a tag, a commit or refs/pr/N), which must have one of
    the files `names`.

    Only that file is fetched. Raises InputError, with a sentence of its own each, where there is no such model or
    revision, it is gated, the hub is out of reach, and where nothing may be fetched (HF_HUB_OFFLINE).
    """
    name, _, revision = source.partition("@")
    for wanted in names:
        found = _fetch(name, wanted, revision or "main")
        if found is not None:
            return HubModel(name, found.parent.name)
    raise InputError(f"{source} on the Hugging Face hub has neither {' nor '.join(names)}, so it is no model read here")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name or owner/name@revision; paths begin with a dot, a slash or a tilde."""
    return re.fullmatch(r"[^./~@][^/@]*/[^/@]+(@.+)?", name) is not None


def _fetch(repo: str, name: str, revision: str, optional: bool = False) -> Path | None:
    """One file, in a few tries; None where the model has none.

    Within a try huggingface_hub itself goes on where a broken connection stopped. `optional` files are not asked for
    where nothing may be fetched or the hub is out of reach, so that what is in the cache still loads.
    """
    import huggingface_hub  # half a second that a local folder need not wait for
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.errors import HTTPError as TransferError  # httpx's, whichever of its versions is in use

    if _is_weights(name):
        _announce(repo, name, revision)
    for attempt in range(TRIES):
        try:
            found = Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError as error:  # out of reach, and not in the cache
            if not optional:
                raise _refusal(repo, revision, error) from error
            if not huggingface_hub.constants.HF_HUB_OFFLINE:
                logging.warning("%s of %s is not in the cache, and the Hugging Face hub is out of reach", name, repo)
            return None
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, HFValidationError) as error:
            raise _refusal(repo, revision, error) from error
        except (TransferError, OSError) as error:
            if (isinstance(error, OSError) and error.errno is not None) or attempt == TRIES - 1:  # such as a full disk
                raise _refusal(repo, revision, error) from error
            seconds = 2**attempt
            print(f"{name} of {repo}: {_reason(error)}; again in {seconds} s", file=sys.stderr, flush=True)
            time.sleep(seconds)
        else:
            if not _is_weights(name) and not sys.stderr.isatty():
                print(f"{repo}: {name}", file=sys.stderr, flush=True)
            return found
    raise AssertionError("the last try returns or raises")


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pth", ".pt"))


def _announce(repo: str, name: str, revision: str) -> None:
    """Without a terminal, and with it huggingface_hub's bar, one line says what is fetched and how large it is."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError as TransferError

    if sys.stderr.isatty():
        return
    try:
        url = huggingface_hub.hf_hub_url(repo, name, revision=revision)
        size = huggingface_hub.get_hf_file_metadata(url).size
    except (TransferError, OSError, ValueError):  # the download itself tells it, in a sentence
        return
    print(f"{repo}: {name}" + (f", {size / 1e6:.1f} MB" if size else ""), file=sys.stderr, flush=True)


def _refusal(repo: str, revision: str, error: Any) -> InputError:
    """One sentence for what went wrong with the hub."""
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
    if isinstance(error, LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return InputError(
                f"{repo} is not a folder here nor in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to"
                " fetch it; unset it, or give the folder of a downloaded copy"
            )
        error = error.__cause__ or error
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return InputError(f"the Hugging Face hub refuses {repo} with the status {status}; try again later")
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return InputError(
            f"{repo} could not be stored in the cache ({error.filename}: {error.strerror}); make room or set HF_HOME"
        )
    return InputError(
        f"{repo} is not a folder here, and the Hugging Face hub ({constants.ENDPOINT}) could not be reached for it"
        f" ({_reason(error)}); check the connection, or give the folder of a downloaded copy"
    )


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def upload_folder(repo_id: str, folder: str | Path, *, private: bool = False, token: str | None = None) -> str:
    """Uploads a folder to the hub as the model `repo_id` ("owner/name"), which is made where it is not there yet.

    `token` is None for the one that `hf auth login` left. Returns the address of the model. Raises InputError where
    the hub refuses it or is out of reach.
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
