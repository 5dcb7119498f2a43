"""The norm behind a post-norm sub-layer, computed in one op together with the delta at its input.

``LN(s + delta)`` is what PALs' low-rank layers and parallel adapters come to in post-norm models. The delta's op can
finish with the norm, which saves writing and reading the sum once. The norm keeps its class and parameters; only its
instance ``forward`` is another callable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..routing.context import current
from .delta_call import apply_rows
from .leaf_hooks import TapInput
from .slot import slot_of

if TYPE_CHECKING:
    from ..method.delta import Delta

__all__ = ["FusedNorm", "fuse_norm", "unfuse_norm"]


class FusedNorm:
    """The ``forward`` of a LayerNorm whose input has a delta; picklable, and follows copies of the model.

    Args:
        leaf: The norm.
        path: Its path in the model.
    """

    def __init__(self, leaf: nn.LayerNorm, path: str) -> None:
        self.leaf = leaf
        self.path = path

    def __call__(self, input: Tensor) -> Tensor:
        leaf, routing = self.leaf, current()
        deferred = None if routing is None else routing.state.deferred.pop(self.path, None)
        if deferred is None:
            return type(leaf).forward(leaf, input)
        delta, source, rows = deferred
        norm: dict[str, Any] = {"norm": "layer", "norm_weight": leaf.weight, "norm_bias": leaf.bias, "eps": leaf.eps}
        normed = apply_rows(delta, input, source, rows, **norm)
        if not rows.batch.idle:
            return normed
        # The op rounds otherwise than torch's norm, which rows without an adapter have when they are among themselves.
        idle = rows.batch.expand(input.shape[0] // rows.batch.batch_size).ids < 0
        return torch.where(idle.view(-1, *(1,) * (input.dim() - 1)), type(leaf).forward(leaf, input), normed)


def fuse_norm(leaf: nn.Module, delta: Delta) -> None:
    """Let ``leaf`` finish the op of ``delta`` when it is a plain LayerNorm that nothing else looks into."""
    if type(leaf) is not nn.LayerNorm or not leaf.elementwise_affine or leaf.bias is None:
        return
    if not delta.fuses_norm or "forward" in leaf.__dict__:
        return
    if any(isinstance(hook, TapInput) for hook in leaf._forward_pre_hooks.values()):
        return
    leaf.__dict__["forward"] = FusedNorm(leaf, delta.site.leaf)
    slot_of(leaf).fuses_norm = True


def unfuse_norm(leaf: nn.Module) -> None:
    """Give ``leaf`` its own forward back."""
    if isinstance(leaf.__dict__.get("forward"), FusedNorm):
        del leaf.__dict__["forward"]
