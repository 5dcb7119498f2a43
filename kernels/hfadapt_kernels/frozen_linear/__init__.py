"""x W^T + b with a frozen W packed once for this machine."""

from .op import frozen_linear
from .packed import PackedLinear
from .reference import frozen_linear_reference

__all__ = ["PackedLinear", "frozen_linear", "frozen_linear_reference"]
