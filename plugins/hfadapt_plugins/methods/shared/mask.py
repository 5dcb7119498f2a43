"""Which tokens are padding, for deltas whose result depends on a row's other tokens: attention and averaged gates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from hfadapt import Rows, Site
from hfadapt.errors import RoutingError

__all__ = ["attention_mask", "padding_mask", "real_tokens"]

# Additive masks hide a key with this or less, down to minus infinity; a bias of positions is nowhere near.
_HIDES = -1e4


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


def real_tokens(rows: Rows, read: Tensor, site: Site) -> Tensor | None:
    """Return which tokens of ``read`` ``[B, T, D]`` are no padding, bool ``[B, T]``; None for all.

    Raises:
        RoutingError: as of `attention_mask`.
    """
    size, tokens = read.shape[:2]
    if not site.reads_memory:
        return padding_mask(rows, size, tokens, site)
    mask = rows.routing.memory_mask
    if mask is None:
        return None
    mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else _padding_in(mask, rows, site, causal=False)
    return _for_rows(mask, size) if mask.shape[1] == tokens else None


def padding_mask(rows: Rows, size: int, tokens: int, site: Site) -> Tensor | None:
    """Return which of ``tokens`` tokens, cached ones included, are no padding: bool ``[size, tokens]``, None for all.

    Raises:
        RoutingError: as of `attention_mask`.
    """
    routing = rows.routing
    mask = routing.mask
    if routing.other_mask is not None:
        mask = _padding_in(routing.other_mask, rows, site, causal=site.causal)
    if mask is None:
        return None
    if routing.cache is None or not site.causal:
        # An encoder over frames or patches has a sequence of another length than the mask of its input, and no mask.
        if mask.shape[1] != tokens and routing.other_mask is None:
            _refuse_added_tokens(mask, tokens, site)
            return None
    elif mask.shape[1] < tokens:  # places of a static cache for tokens to come, which causality hides
        mask = F.pad(mask, (0, tokens - mask.shape[1]), value=1)
    return _for_rows(mask[:, :tokens], size)


def _refuse_added_tokens(mask: Tensor, tokens: int, site: Site) -> None:
    """Raise where a mask hides some tokens, and the layers have more: which of them it means cannot be told."""
    if torch.compiler.is_compiling() or mask.shape[1] > tokens or bool(mask.all()):
        return
    raise RoutingError(
        "the padding mask and the tokens of the layers differ in number: the model adds tokens of its own",
        where=f"{site.leaf} ({site.slot})",
        got=f"a mask of {mask.shape[1]} tokens for {tokens}",
        allowed="a mask of as many, or one that hides nothing",
        try_="rows of one length, without padding; or a method whose tokens do not see one another (bottleneck, lora)",
    )


def _for_rows(mask: Tensor, size: int) -> Tensor:
    """A mask of the rows as they were given, for rows that were repeated since."""
    repeats = size // mask.shape[0] if mask.shape[0] else 1
    mask = mask.bool()
    return mask.repeat_interleave(repeats, 0) if repeats > 1 else mask


def _padding_in(mask: object, rows: Rows, site: Site, causal: bool) -> Tensor:
    """What a mask of queries and keys says of padding, bool ``[B, K]``: every key that a query sees is a real token.

    Worked out once a call. Functions that make such masks let padding see everything, later tokens too, where it would
    see nothing; such queries say nothing. In a traced graph what else the mask says cannot be looked at.

    Args:
        mask: ``[B|1, 1|H, Q, K]`` or ``[B, Q, K]``, bool or additive; or a map with such a one of full attention.
        rows: Of the call.
        site: Where the delta is, for errors.
        causal: Queries see no later keys.

    Raises:
        RoutingError: it has another form, or says more than that: documents in one row, windows, a bias.
    """
    found = rows.routing.prepared.get(("padding", causal))
    if found is not None and found[0] is mask:
        return found[1]
    one = mask.get("full_attention", next(iter(mask.values()), None)) if isinstance(mask, Mapping) else mask
    if not isinstance(one, Tensor) or one.dim() not in (3, 4):
        raise _not_padding(one, site)
    heads = one.unsqueeze(1) if one.dim() == 3 else one
    seen = heads == 0 if heads.is_floating_point() else heads.bool()
    visible = seen[:, 0]
    if causal:
        queries = torch.arange(visible.shape[1], device=visible.device) + rows.routing.cached
        past = torch.arange(visible.shape[2], device=visible.device) <= queries.unsqueeze(1)
        tells = ~(visible & ~past).any(-1)
    else:
        past, tells = torch.ones_like(visible[0]), torch.ones_like(visible[..., 0])
    real = (visible & tells.unsqueeze(-1)).any(1)
    if not torch.compiler.is_compiling():
        plain = visible == (real.unsqueeze(1) & past)
        first, square = rows.routing.cached if causal else 0, visible.shape[1] == visible.shape[2]
        # What padding sees does not matter.
        asks = real[:, first : first + visible.shape[1]] if causal or square else torch.ones_like(tells)
        bias = heads.is_floating_point() and bool(((heads != 0) & (heads > _HIDES)).any())
        several = heads.shape[1] > 1 and not torch.equal(seen, seen[:, :1].expand_as(seen))
        if bias or several or not (plain.all(-1) | ~asks).all() or (visible.any() and not real.any()):
            raise _not_padding(one, site)
    rows.routing.prepared[("padding", causal)] = (mask, real)
    return real


def _not_padding(mask: object, site: Site) -> RoutingError:
    return RoutingError(
        "a delta that looks at all tokens of a row needs a mask that says which of them are padding, and no more",
        where=f"{site.leaf} ({site.slot})",
        got=f"{type(mask).__name__} {list(mask.shape) if isinstance(mask, Tensor) else ''}".strip(),
        allowed="attention_mask [B, T]; or [B, 1, T, K] that hides padding, and in a decoder what comes later",
        try_="attention_mask [B, T] and the default cache",
    )
