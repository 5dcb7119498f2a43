"""Saved folders by their names on the hub: fetched whole, from the hub or from its cache."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from .files import CONFIG_FILE, OLD_CONFIG_FILE
from .save_hooks import SIDE_FOLDER

__all__ = ["local_folder", "of_the_base"]

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: Of a saved folder, ours or another library's; what else a repository holds is left where it is.
_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.md", "*.jinja")
_DESCRIPTIONS = tuple(f"{place}{file}" for place in ("", f"{SIDE_FOLDER}/") for file in (CONFIG_FILE, OLD_CONFIG_FILE))
#: What of ``from_pretrained``'s arguments says where on the hub, and in which state, a repository is read.
_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
#: What the auto classes say of a folder; its base has a place and a revision of its own.
_OF_THE_FOLDER = ("config", "adapter_kwargs", "adapter_name", "revision", "subfolder", "code_revision", "_commit_hash")


def local_folder(folder: Any, options: Mapping[str, Any] | None = None) -> Any:
    """Return where the files of a saved folder are: a path as it is, or what a name on the hub stands for.

    Args:
        folder: A path, or a name such as ``me/my-adapter``. What is neither comes back as it is: whoever reads it says
            what is missing.
        options: Arguments of ``from_pretrained``, of which those that concern the hub count, and ``subfolder``.

    Raises:
        CheckpointError: there is such a repository and it may not be read, or the hub or the disk failed.
        ConfigError: the revision or the token is none.
    """
    given = {} if options is None else options
    for key, kinds in (("revision", (str,)), ("token", (str, bool))):
        value = given.get(key)
        if value is not None and (not isinstance(value, kinds) or value == ""):
            raise ConfigError(
                f"bad {key}",
                where="the hub",
                got=f"a {type(value).__name__}",
                allowed="a name, or None",
                try_=f"{key}=None, which takes what the hub has by default",
            )
    inside = str(given.get("subfolder") or "")
    if not isinstance(folder, str) or os.path.lexists(folder) or not _NAME.fullmatch(folder):
        return Path(folder) / inside if inside and isinstance(folder, (str, os.PathLike)) else folder
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    where = {name: given[name] for name in _OPTIONS if given.get(name) is not None}
    for file in _DESCRIPTIONS:  # small, where the repository may hold a whole base
        try:
            hf_hub_download(folder, file, subfolder=inside or None, **where)
            return Path(snapshot_download(folder, allow_patterns=list(_FILES), **where)) / inside
        except GatedRepoError as error:  # there, and for others
            raise _unreachable(folder, error) from error
        except EntryNotFoundError:
            continue
        except (RepositoryNotFoundError, HFValidationError):
            return folder
        except (HfHubHTTPError, OSError) as error:
            raise _unreachable(folder, error) from error
    return folder


def of_the_base(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` of a saved folder that its base's takes too."""
    found = {key: value for key, value in options.items() if key not in _OF_THE_FOLDER}
    # Before 5.24 the auto classes put the dtype that they were given into the folder's config, and there alone.
    dtype = getattr(options.get("config"), "dtype", None)
    return found if dtype is None else {"dtype": dtype, **found}


def _unreachable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        "the hub does not give out what that name stands for",
        where=name,
        got=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}",
        allowed="a folder, or the name of a repository that you may read",
        try_="check the network, `hf auth login`, and the disk",
    )
