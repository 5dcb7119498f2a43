"""Config of per-task poolers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfadapt import MethodConfig

__all__ = ["Pooler"]


@dataclass(frozen=True)
class Pooler(MethodConfig):
    """A pooler of each task's own, a copy of the base's at the start (Stickland & Murray 2019, section 4.3).

    Use it beside another method: ``(hfadapt.PAL(size=180), hfadapt.Pooler())``.
    """

    method: ClassVar[str] = "pooler"
