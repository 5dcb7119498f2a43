"""setuptools' build backend, which has torch there when the C++ kernels are compiled in an environment of their own.

The kernels use torch's stable ABI only, so that any torch from the oldest that is allowed serves as the one they are
compiled against. That of the environment which is installed into is taken where there is one (``setup.py`` finds it);
a second copy is asked for only where there is none.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What setuptools asks for, and torch where it is needed and not at hand."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for an editable install."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch()


def _torch() -> list[str]:
    if os.environ.get("HFADAPT_BUILD_CPP") == "0" or shutil.which(os.environ.get("CXX", "c++")) is None:
        return []
    if importlib.util.find_spec("torch") or (Path(sysconfig.get_path("platlib")) / "torch" / "version.py").is_file():
        return []
    return re.findall(r'"(torch>=[^"]+)"', _PROJECT.read_text("utf-8"))
