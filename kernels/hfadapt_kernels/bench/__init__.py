"""Measures the ops against what people write today. ``hfadapt bench ops`` calls `run_ops`.

A file ``cases_<op>.py`` holds ``cases() -> list[Case]``; it is found by its name.
"""

from .case import Case, Workload
from .runner import ALLOCATORS, all_cases, matches, run_ops

__all__ = ["ALLOCATORS", "Case", "Workload", "all_cases", "matches", "run_ops"]
