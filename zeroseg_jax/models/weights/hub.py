"""The Hugging Face hub: the local copy of a model that is named by its id, and the upload of a folder."""

from pathlib import Path

from zeroseg_jax.errors import InputError


def find_folder(source: str | Path) -> Path:
    """The folder itself, or the local copy of a Hugging Face hub id `owner/name`, downloaded where it is not yet.

    Raises InputError where there is neither such a folder nor such a model within reach.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.exists():
        raise InputError(f"{name} is a file, expected the model's folder with config.json and model.safetensors")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise InputError(f"there is no folder {name}, give a model's folder or a Hugging Face hub id owner/name")

    import huggingface_hub  # half a second that a local folder need not wait for
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx

    try:
        files = ["*.json", "*.txt", "*spiece.model", "model*.safetensors"]
        files += ["clip/model*.safetensors"]  # beside our students
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
    except (HFValidationError, httpx.HTTPError, OSError) as error:  # offline, and not in the cache
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{name} is neither a folder here nor a model that could be fetched from the Hugging Face hub ({reason});"
            " check the spelling or give the folder of a downloaded copy"
        ) from error


def upload_folder(repo_id: str, folder: str | Path, *, private: bool = False, token: str | None = None) -> str:
    """Uploads a folder to the hub as the model `repo_id` ("owner/name"), which is made where it is not there yet.

    `token` is None for the one that `hf auth login` left. Returns the address of the model. Raises InputError where
    the hub refuses it or is out of reach.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload by zeroseg_jax")
    except (HFValidationError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(
            f"{repo_id} could not be uploaded to the Hugging Face hub ({reason});"
            " check the name owner/name, the connection, and the token (hf auth login)"
        ) from error
    return str(url)
