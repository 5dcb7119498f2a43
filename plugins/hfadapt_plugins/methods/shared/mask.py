"""The attention mask that a delta with attention of its own uses."""

from __future__ import annotations

from torch import Tensor

from hfadapt import Rows, Site
from hfadapt.errors import RoutingError, problem

__all__ = ["attention_mask"]


def attention_mask(rows: Rows, source: Tensor, site: Site) -> Tensor | None:
    """Return the tokens that may be seen, bool ``[B, T]``, or None when all may.

    Args:
        rows: Of the call.
        source: ``[B, T, D]``, the tokens that are attended to, cached ones included.
        site: Where the delta is.

    Raises:
        RoutingError: the model was given a mask that says more than which tokens are padding.
    """
    routing = rows.routing
    tokens = source.shape[1]
    mask = routing.mask
    if routing.other_mask is not None:
        mask = _seen_by_the_last(routing.other_mask, site)
    # An encoder over frames or patches has a sequence of another length than the mask of its input, and no mask.
    if mask is None or (mask.shape[1] != tokens and routing.other_mask is None):
        return None
    mask = mask[:, :tokens].bool()  # a static cache has places for tokens to come
    repeats = source.shape[0] // mask.shape[0] if mask.shape[0] else 1
    return mask.repeat_interleave(repeats, 0) if repeats > 1 else mask


def _seen_by_the_last(mask: object, site: Site) -> Tensor:
    """What the last token of a causal sequence sees, bool ``[B, K]``: every token that is no padding."""
    if not site.causal or not isinstance(mask, Tensor) or mask.dim() != 4:
        raise RoutingError(
            problem(
                "attention inside a delta needs a mask that says which tokens are padding",
                where=f"{site.leaf} ({site.slot})",
                got=f"{type(mask).__name__} {list(mask.shape) if isinstance(mask, Tensor) else ''}".strip(),
                allowed="attention_mask [B, T]; in a decoder also [B, 1, T, K]",
                try_="attention_mask [B, T] and the default cache",
            )
        )
    last = mask[:, 0, -1]
    return last == 0 if last.is_floating_point() else last
