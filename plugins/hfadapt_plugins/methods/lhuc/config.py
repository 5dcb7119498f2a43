"""Config of LHUC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfadapt import MethodConfig

__all__ = ["LHUC"]


@dataclass(frozen=True)
class LHUC(MethodConfig):
    """``h' = 2 sigmoid(c) * h'``: every hidden unit of every layer's output gets a learned factor between 0 and 2.

    Swietojanski & Renals 2014, as Stickland & Murray 2019 tried it; it starts as the base (c = 0).
    """

    method: ClassVar[str] = "lhuc"
