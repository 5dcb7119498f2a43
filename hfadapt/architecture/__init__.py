"""Architecture maps: where the parts of a transformer are, as data.

An adaptation method never asks what kind of model it is given; it asks a map. ``resolve(model)`` finds the map of a
model: in the registry by ``config.model_type``, else by watching the model's data flow.
"""

from .build import stack_map
from .explain import explain
from .interface import looks_up_attention
from .linears import (
    CONVOLUTIONS,
    convolves_at_once,
    is_convolution,
    is_linear,
    is_table,
    linear_sizes,
    why_no_table,
)
from .maps import KINDS, NORM_ROLES, STYLES, ArchitectureMap, AttentionMap, LayerMap, StackMap, join
from .resolve import resolve
from .structure import convolution_leaves, convolution_names, linear_leaves, place_in_list, structure, table_leaves

__all__ = [
    "CONVOLUTIONS",
    "KINDS",
    "NORM_ROLES",
    "STYLES",
    "ArchitectureMap",
    "AttentionMap",
    "LayerMap",
    "StackMap",
    "convolution_leaves",
    "convolution_names",
    "convolves_at_once",
    "explain",
    "is_convolution",
    "is_linear",
    "is_table",
    "join",
    "linear_leaves",
    "linear_sizes",
    "looks_up_attention",
    "place_in_list",
    "resolve",
    "stack_map",
    "structure",
    "table_leaves",
    "why_no_table",
]
