"""The gate of UniPELT: how much of a method's change each row (or token) takes.

``g = sigmoid(w . x + b)`` with x what the method reads (Mao et al. 2022, arXiv:2110.07577, section 3.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfadapt.errors import RoutingError
from hfadapt.method import MethodConfig
from hfadapt.runtime import needs_earlier_tokens

from .mask import real_tokens

if TYPE_CHECKING:
    from hfadapt import Delta, Rows, Site, Weights

__all__ = ["GATES", "add_gate", "check_gate", "gate_of_rows", "gate_variant", "over_row"]

# "token": each token its own; "mean": averaged over a row's real tokens; "mean_padded": averaged over padding too, as
# the published code and AdapterHub do, which makes a row's output depend on how far its batch was padded.
GATES = ("none", "token", "mean", "mean_padded")


def check_gate(config: MethodConfig, name: str = "gate") -> None:
    """Raise ``ConfigError`` unless the field ``name`` is one of `GATES`."""
    config.require_one_of(name, GATES)


def add_gate(delta: Delta, weights: Weights, width: int) -> None:
    """Give an adapter the parameters of a gate that reads vectors of ``width``."""
    weights.gate_weight = delta.parameter((1, width), lambda t: nn.init.normal_(t, std=0.02))
    weights.gate_bias = delta.parameter((1,))


def gate_of_rows(delta: Delta, x: Tensor, rows: Rows) -> Tensor:
    """The gate of each row's own adapter, ``[B, T or 1, 1]``; 1 for rows without one.

    Args:
        delta: Its adapters have ``gate_weight`` and ``gate_bias`` and a config with ``gate``.
        x: What the method reads, ``[B, T, D]`` or ``[B, D]``.
        rows: Which adapter each row uses.
    """
    flat = x.dim() == 2
    x = x.unsqueeze(1) if flat else x
    kind = str(delta.config(rows.names[0]).gate)
    weight = rows.gather(delta.weights("gate_weight", rows.names), 0.0)
    bias = rows.gather(delta.weights("gate_bias", rows.names), 0.0)
    logits = (x * weight).sum(-1, keepdim=True) + bias.unsqueeze(-1)
    gates = torch.sigmoid(logits)
    if kind != "token":
        gates = over_row(gates, rows, delta.site, padding=kind == "mean_padded")
    if not rows.batch.uniform:
        gates = torch.where((rows.batch.ids >= 0).view(-1, 1, 1), gates, torch.ones_like(gates))
    return gates.squeeze(1) if flat else gates


def over_row(gates: Tensor, rows: Rows, site: Site, *, padding: bool) -> Tensor:
    """Average ``[B, T, 1]`` over the real tokens of each row, so that how far its batch is padded changes nothing.

    Args:
        gates: One of each token.
        rows: Of the call.
        site: Where the gate reads.
        padding: Average over padding as well.

    Raises:
        RoutingError: a decoder is given its tokens step by step, which hides those that the mean needs; or the mask
            does not say which tokens are padding.
    """
    _refuse_single_steps(site, rows)
    real = None if padding else real_tokens(rows, gates, site)
    if real is None:
        return gates.mean(1, keepdim=True)
    real = real.unsqueeze(-1)
    # Zeros in place of a product with the mask: a padded place may hold anything, infinities too.
    total = gates.masked_fill(~real, 0.0).sum(1, keepdim=True)
    return total / real.sum(1, keepdim=True).clamp_min(1).to(gates.dtype)


def _refuse_single_steps(site: Site, rows: Rows) -> None:
    needs_earlier_tokens(rows.routing, site)
    cached = rows.routing.cached
    if site.causal and (isinstance(cached, Tensor) or cached):  # a tensor is the count of a cache in a traced graph
        raise RoutingError(
            "a gate averaged over a row's tokens cannot decode with a key-value cache, which hides them",
            where=site.leaf,
            got="new tokens after cached ones",
            allowed="all tokens of a row in every call",
            try_="generate(..., use_cache=False), or gate='token' where the method has it",
        )


def gate_variant(config: Any) -> str:
    """What a place's key must say, so that adapters with and without a gate do not share a delta."""
    return "" if config.gate == "none" else f"gate_{config.gate}"
