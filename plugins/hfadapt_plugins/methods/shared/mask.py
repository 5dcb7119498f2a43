"""The attention mask that a delta with attention of its own uses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hfadapt import Rows, Site
from hfadapt.errors import RoutingError, problem

__all__ = ["attention_mask", "padding_mask"]


def attention_mask(rows: Rows, source: Tensor, site: Site) -> Tensor | None:
    """Return the tokens that may be seen, bool ``[B, T]``, or None when all may.

    Args:
        rows: Of the call.
        source: ``[B, T, D]``, the tokens that are attended to.
        site: Where the delta is.

    Raises:
        RoutingError: the model was given a mask that says more than which tokens are padding.
    """
    return padding_mask(rows, source.shape[0], source.shape[1], site)


def padding_mask(rows: Rows, size: int, tokens: int, site: Site) -> Tensor | None:
    """Return which of ``tokens`` tokens, cached ones included, are no padding: bool ``[size, tokens]``, None for all.

    Raises:
        RoutingError: as of `attention_mask`.
    """
    routing = rows.routing
    mask = routing.mask
    if routing.other_mask is not None:
        mask = _seen_by_the_last(routing.other_mask, site)
    if mask is None:
        return None
    if routing.cache is None or not site.causal:
        # An encoder over frames or patches has a sequence of another length than the mask of its input, and no mask.
        if mask.shape[1] != tokens and routing.other_mask is None:
            return None
    elif mask.shape[1] < tokens:  # places of a static cache for tokens to come, which causality hides
        mask = F.pad(mask, (0, tokens - mask.shape[1]), value=1)
    mask = mask[:, :tokens].bool()
    repeats = size // mask.shape[0] if mask.shape[0] else 1
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
