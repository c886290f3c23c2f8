"""Sharing a merged model: its folder, uploaded to the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from evomerge.checkpoints import ModelRef, open_checkpoint
from evomerge.errors import CheckpointError, Found, InputError, Place, first_line

_TAG = "evomerge"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+\Z")


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a merged model's folder to a repository, made where there is none; returns its URL.

    Raises CheckpointError for a folder that is no merged model, InputError where the Hub cannot be
    reached, does not know the user, or has the repository with another visibility.
    """
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    if not _REPOSITORY.match(repository):
        raise InputError(f"expected a repository as OWNER/NAME, got {repository!r}")
    _check_merged(folder)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise InputError("expected the Hub, got HF_HUB_OFFLINE, which forbids it; unset it")
    if huggingface_hub.get_token() is None:
        raise InputError(
            "expected a login to the Hub, got none; run `hf auth login` with a token that may "
            "write, or set HF_TOKEN"
        )
    api = huggingface_hub.HfApi()
    try:
        try:
            there = api.repo_info(repository, repo_type="model")
        except RepositoryNotFoundError:
            there = None
        if there is not None and bool(there.private) != private:
            asked, is_ = ("private", "public") if private else ("public", "private")
            raise InputError(
                f"expected {repository} to be {asked}, got one that is {is_}; push with --{is_}, "
                "change it on the Hub, or choose another name"
            )
        url = api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            commit_message="Merged with evomerge",
        )
    except InputError:
        raise
    except Exception as problem:  # the library raises whatever its HTTP client raises
        raise InputError(
            f"expected to upload {folder} to {repository}, got {type(problem).__name__} from the "
            f"Hub ({first_line(problem)}); check the network, and that your token may write there"
        ) from None
    return str(url)


def _check_merged(folder: Path) -> None:
    """Raise CheckpointError where a folder is no whole model, or not one that evomerge has made."""
    import yaml
    from huggingface_hub.repocard import metadata_load

    place = Place("the command line", CheckpointError, "DIR")
    if not folder.is_dir():
        raise place.fail(
            "a merged model's folder",
            Found(f"{folder}, which is none"),
            "merge a recipe into it first",
        )
    open_checkpoint(ModelRef(str(folder)), place)  # every file of weights is there
    card, data = folder / "README.md", None
    with contextlib.suppress(ValueError, yaml.YAMLError):  # a card that somebody has spoilt
        data = metadata_load(card) if card.is_file() else None
    if _TAG not in ((data or {}).get("tags") or ()):
        raise place.fail(
            "a folder that evomerge merge has written",
            Found(f"{folder}, whose README.md has no tag {_TAG}"),
            "merge a recipe into it, or upload it with `hf upload`",
        )
