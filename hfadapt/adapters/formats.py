"""For plugins that read and write folders of other libraries: strict, atomic, all or nothing, as our own are."""

from __future__ import annotations

from .atomic import atomic_folder, target_folder
from .files import CONFIG_FILE, WEIGHTS_FILE, read_json, read_tensors
from .freeze import head_modules
from .own_copies import add_copies, own_modules, own_tensors, resize_outputs
from .restore import all_or_nothing, as_described
from .saved_tensors import check_tensors, fill, require_finite

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "add_copies",
    "all_or_nothing",
    "as_described",
    "atomic_folder",
    "check_tensors",
    "fill",
    "head_modules",
    "own_modules",
    "own_tensors",
    "read_json",
    "read_tensors",
    "require_finite",
    "resize_outputs",
    "target_folder",
]
