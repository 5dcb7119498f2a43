"""Initial values of new weights."""

from __future__ import annotations

import math

from torch import Tensor, nn

__all__ = ["INITS", "STD", "init_pair", "init_projection"]

INITS = ("identity", "normal")
"""``identity``: Kaiming-uniform down and zero up, so that the model starts as its base (He et al. 2022, appendix C);
``normal``: N(0, 0.02) for both, as BERT, Houlsby et al. and the PALs code."""

STD = 0.02


def init_projection(tensor: Tensor) -> None:
    """Fill with N(0, 0.02), in place."""
    nn.init.normal_(tensor, std=STD)


def init_pair(down: Tensor, up: Tensor, init: str) -> None:
    """Fill the two matrices of a delta in place; ``init`` is one of ``INITS``."""
    if init == "normal":
        init_projection(down)
        init_projection(up)
    else:
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        nn.init.zeros_(up)
