"""Saved folders by their names on the hub: fetched whole, from the hub or from its cache."""

from __future__ import annotations

import os
import re
from typing import Any

from ..errors import CheckpointError, ConfigError
from .files import CONFIG_FILE
from .save_hooks import SIDE_FOLDER

__all__ = ["local_folder"]

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: Of a saved folder, ours or another library's; what else a repository holds is left where it is.
_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.md", "*.jinja")


def local_folder(folder: Any, revision: str | None = None, token: str | bool | None = None) -> Any:
    """Return where the files of a saved folder are: a path as it is, or what a name on the hub stands for.

    Args:
        folder: A path, or a name such as ``me/my-adapter``. What is neither comes back as it is: whoever reads it says
            what is missing.
        revision: Of the repository: a branch, a tag or a commit.
        token: With which it is read; by default that of ``hf auth login``.

    Raises:
        CheckpointError: there is such a repository and it may not be read, or the hub or the disk failed.
        ConfigError: the revision or the token is none.
    """
    for key, value, kinds in (("revision", revision, (str,)), ("token", token, (str, bool))):
        if value is not None and (not isinstance(value, kinds) or value == ""):
            raise ConfigError(f"bad {key}", where="the hub", got=f"a {type(value).__name__}", allowed="a name, or None")
    if not isinstance(folder, str) or os.path.lexists(folder) or not _NAME.fullmatch(folder):
        return folder
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    for file in (CONFIG_FILE, f"{SIDE_FOLDER}/{CONFIG_FILE}"):  # small, where the repository may hold a whole base
        try:
            hf_hub_download(folder, file, revision=revision, token=token)
            return snapshot_download(folder, revision=revision, token=token, allow_patterns=list(_FILES))
        except GatedRepoError as error:  # there, and for others
            raise _unreachable(folder, error) from error
        except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
            continue
        except (HfHubHTTPError, OSError) as error:
            raise _unreachable(folder, error) from error
    return folder


def _unreachable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        "the hub does not give out what that name stands for",
        where=name,
        got=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}",
        allowed="a folder, or the name of a repository that you may read",
        try_="check the network, `hf auth login`, and the disk",
    )
