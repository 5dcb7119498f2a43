"""Low-rank layers of PALs (Stickland & Murray 2019): ``TS(h) = V_D g(V_E h)``, one pair of matrices a layer."""

from .config import LowRank
from .method import LowRankMethod

__all__ = ["LowRank", "LowRankMethod"]
