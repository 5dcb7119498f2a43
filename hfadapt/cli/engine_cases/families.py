"""MAM and PAL, eight tasks mixed in short rows, beside the bare base."""

from __future__ import annotations

from .case import Case, Rival, Sizes
from .mixed import bare, forward
from .models import adapted, batch, packed

__all__ = ["cases"]

TASKS, TOKENS = 8, 4
# Of the bare base's time, and how far below it each should come.
_BEFORE = {"mam": (2.21, 1.4), "pal": (1.43, 1.2)}
# Prefixes as they are served: the networks that train them are gone, as flatten_prefix leaves them.
_METHODS = {"mam": {"method": "mam", "prefix": {"reparametrization": "flat"}}, "pal": {"method": "pal"}}


def cases(sizes: Sizes) -> list[Case]:
    """Each method's cost in times the base; at most what is hoped for."""
    rows = batch(sizes, TOKENS, TASKS)
    found = []
    for name, (before, better) in _BEFORE.items():
        model = packed(adapted(sizes, _METHODS[name], TASKS), "float32")
        rival = Rival("bare base, torch float32", bare(sizes, rows), most=before / better)
        notes = {"times the base, earlier": before}
        found.append(
            Case(f"{TASKS} tasks mixed, {name}", forward(model, rows), [rival], f"{sizes.rows} x {TOKENS}", notes=notes)
        )
    return found
