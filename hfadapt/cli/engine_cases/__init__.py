"""The cases of ``hfadapt bench engine``: what is timed, beside whom, and what was hoped for."""

from __future__ import annotations

from .case import Case, Rival, Sizes, figures_of
from .rivals import Rivals

__all__ = ["CASES", "Case", "Rival", "Rivals", "Sizes", "cases_of", "figures_of"]

CASES = ("mixed-int8", "mixed", "one-text", "one-text-int8", "fusion", "families", "real-text", "many")


def cases_of(name: str, sizes: Sizes, rivals: Rivals) -> list[Case]:
    """Build the cases of one name, ready to be timed.

    Args:
        name: One of `CASES`.
        sizes: Of model and batches.
        rivals: The libraries that need an environment of their own.
    """
    from . import families, fusion, many, mixed, one_text, real_text

    made = {
        "mixed-int8": lambda: mixed.int8(sizes, rivals),
        "mixed": lambda: mixed.float32(sizes),
        "one-text": lambda: one_text.float32(sizes),
        "one-text-int8": lambda: one_text.int8(sizes, rivals),
        "fusion": lambda: fusion.cases(sizes, rivals),
        "families": lambda: families.cases(sizes),
        "real-text": lambda: real_text.cases(sizes),
        "many": lambda: many.cases(sizes),
    }
    return made[name]()
