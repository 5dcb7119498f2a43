"""For plugins that read and write folders of other libraries: strict, atomic, all or nothing, as our own are."""

from __future__ import annotations

from ..errors.arguments import require_folder
from .atomic import atomic_folder, target_folder
from .files import OLD_CONFIG_FILE as CONFIG_FILE
from .files import (
    WEIGHTS_FILE,
    is_ours,
    read_json,
    read_safetensors,
    read_tensors,
    require_file,
)
from .folder_format import Described, DescribedFusion, FolderContent, FolderFormat, ReadOptions, no_format
from .foreign import arch_of, export, fusion_tensors, paths_in, put_on
from .freeze import head_modules
from .occupied import refuse_foreign, refuse_own
from .own_copies import add_copies, own_modules, own_tensors, resize_outputs
from .pickles import read_pickle
from .restore import all_or_nothing, as_described
from .save import require_loadable
from .saved_tensors import check_tensors, fill, require_finite

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "Described",
    "DescribedFusion",
    "FolderContent",
    "FolderFormat",
    "ReadOptions",
    "add_copies",
    "all_or_nothing",
    "arch_of",
    "as_described",
    "atomic_folder",
    "check_tensors",
    "export",
    "fill",
    "fusion_tensors",
    "head_modules",
    "is_ours",
    "no_format",
    "own_modules",
    "own_tensors",
    "paths_in",
    "put_on",
    "read_json",
    "read_pickle",
    "read_safetensors",
    "read_tensors",
    "refuse_foreign",
    "refuse_own",
    "require_file",
    "require_finite",
    "require_folder",
    "require_loadable",
    "resize_outputs",
    "target_folder",
]
