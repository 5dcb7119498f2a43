"""norm(x + residual + s * up(act(down(h)))), the bottleneck adapter fused with the norm after it."""

from .op import parallel_adapter_norm
from .reference import parallel_adapter_norm_reference

__all__ = ["parallel_adapter_norm", "parallel_adapter_norm_reference"]
