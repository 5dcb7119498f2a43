"""Prefix tuning: trained keys and values in front of a row's own (Li and Liang 2021; He et al. 2022)."""

from .behind import has_distances
from .config import FORMS, PrefixConfig
from .delta import PrefixDelta
from .flatten import flatten_prefix
from .method import PrefixMethod
from .tables import PrefixTables

__all__ = ["FORMS", "PrefixConfig", "PrefixDelta", "PrefixMethod", "PrefixTables", "flatten_prefix", "has_distances"]
