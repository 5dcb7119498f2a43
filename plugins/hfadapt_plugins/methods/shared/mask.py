"""The attention mask that a delta with attention of its own uses."""

from __future__ import annotations

from torch import Tensor

from hfadapt import Rows, Site
from hfadapt.errors import RoutingError, problem

__all__ = ["attention_mask"]


def attention_mask(rows: Rows, source: Tensor, site: Site) -> Tensor | None:
    """Return the tokens that may be seen, bool ``[B, T]``, or None when all may.

    Raises:
        RoutingError: the model decodes with a key-value cache, which does not hold this delta's keys and values.
    """
    routing = rows.routing
    tokens = source.shape[1]
    mask = routing.mask
    if site.causal and routing.cached:
        raise RoutingError(
            problem(
                "attention inside a delta cannot decode with a key-value cache",
                where=site.leaf,
                got=f"{tokens} new tokens after {routing.cached} cached ones",
                try_="generate(..., use_cache=False)",
            )
        )
    # An encoder over frames or patches has a sequence of another length than the mask of its input, and no mask.
    if mask is None or mask.shape[1] != tokens:
        return None
    mask = mask.bool()
    repeats = source.shape[0] // mask.shape[0] if mask.shape[0] else 1
    return mask.repeat_interleave(repeats, 0) if repeats > 1 else mask
