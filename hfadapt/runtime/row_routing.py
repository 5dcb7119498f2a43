"""The layer of a `Router`: it reads what a row says, and gives each adapter a weight before the first layer runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import RoutingError
from ..routing.growth import copies
from ..routing.steps import Route, top_weights
from .attachment import shared_modules
from .generate import Generation, running

if TYPE_CHECKING:
    from ..routing.routing import Routing
    from .attachment import Attachment

__all__ = ["ROUTER", "RouterLayer", "routers_of", "weigh_rows"]

#: Under which a layer stands among what its adapters share, below the node's key.
ROUTER = "router"


class RouterLayer(nn.Module):
    """Scores adapters for a row: ``W s + b``, s the mean of its tokens' input embeddings, normalised.

    The embeddings are the base's own, read without adapters and without gradients. s has mean 0 and variance 1, so that
    scores do not hang on how large a base's embeddings are.

    Args:
        model: The adapted model, whose input embeddings are read.
        names: The adapters, in order.
        width: Of an embedding, D.
    """

    def __init__(self, model: Any, names: tuple[str, ...], width: int) -> None:
        super().__init__()
        # Not as a child: it is the parent. Read anew in every call, for resizing puts other embeddings in their place.
        self.__dict__["model"] = model
        self.names = names
        self.weight = nn.Parameter(torch.empty(len(names), width).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(len(names)))

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """Return the scores ``[B, N]``.

        Every sum is one row's alone: no product of matrices, whose order of sums may hang on how many rows there are.

        Args:
            text: Ids ``[B, T]``, or embeddings ``[B, T, D]``.
            mask: ``[B, T]``, 0 for padding; None where every token is real.

        Raises:
            RoutingError: the embeddings are of another width.
        """
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(text.device.type, enabled=False):
            state = self._state(text, mask, dtype)
            return (state.unsqueeze(1) * self.weight.to(dtype)).sum(-1) + self.bias.to(dtype)

    @torch.no_grad()
    def _state(self, text: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        model: Any = self.model
        table = model.get_input_embeddings()
        # The class's own method: hooks and copies of adapters would make it theirs.
        embedded = text if text.is_floating_point() else type(table).forward(table, text)
        if embedded.dim() != 3 or embedded.shape[-1] != self.weight.shape[-1]:
            raise RoutingError(
                "a router cannot read these embeddings",
                where="Router",
                got=f"a tensor of shape {list(embedded.shape)}",
                allowed=f"[rows, tokens, {self.weight.shape[-1]}]",
                try_="input_ids; or inputs_embeds of the width of the model's input embeddings",
            )
        real = embedded.new_ones(embedded.shape[:2]) if mask is None else mask
        real = real.to(dtype).unsqueeze(-1)
        # Chosen and not multiplied by zero: what stands in padding is nobody's.
        tokens = torch.where(real != 0, embedded.to(dtype) * real, torch.zeros((), dtype=dtype, device=real.device))
        mean = tokens.sum(1) / real.sum(1).clamp_min(1)
        return F.layer_norm(mean, mean.shape[-1:])


def routers_of(model: nn.Module, names: Iterable[str] | None = None) -> Iterator[tuple[str, RouterLayer]]:
    """Yield the key and the layer of each router of a model.

    Args:
        model: The adapted model.
        names: Only of routers over adapters among these.
    """
    shared = getattr(model, "hfadapt_shared", None)
    among = None if names is None else set(names)
    for key in list(shared) if isinstance(shared, nn.ModuleDict) else ():
        found = shared_modules(model, key)._modules.get(ROUTER)
        if isinstance(found, RouterLayer) and (among is None or among.issuperset(found.names)):
            yield key, found


def weigh_rows(attachment: Attachment, routing: Routing) -> None:
    """Work out which adapters each row uses in the routed steps of a pass.

    It happens at the model's root and not in the first layer that asks, because a checkpointed layer is run twice.

    Raises:
        RoutingError: the call does not hold what the rows say, or the router would be trained without a gradient.
    """
    for index, step in routing.live_steps():
        if isinstance(step, Route):
            layer: Any = attachment.shared[step.key][ROUTER]  # type: ignore[index]
            _require_gradient(step, layer)
            shares = top_weights(_scores(step, layer, routing, running(attachment)), step.top_k)
            growth = routing.state.growth
            if growth is not None and shares.shape[0] == growth.size:
                shares = copies(shares, growth.children)
            routing.state.shares[index] = shares


def _require_gradient(step: Route, layer: RouterLayer) -> None:
    if step.top_k == 1 and layer.training and torch.is_grad_enabled() and layer.weight.requires_grad:
        raise RoutingError(
            "a router that gives each row one adapter cannot be trained: its weight is 1, whatever its score",
            where=f"Router of {step.key}",
            got="top_k=1 in training",
            allowed="top_k of 2 or more",
            try_="train hfadapt.Router(..., top_k=2), which has the same layer, and use top_k=1 in evaluation; or "
            "requires_grad_(False) for the router",
        )


def _scores(step: Route, layer: RouterLayer, routing: Routing, generation: Generation | None) -> Tensor:
    given = routing.given
    if generation is None:
        if given.text is None or given.other_past or not isinstance(given.cached, int) or given.cached:
            raise _unread(step, given.text, given.other_past or given.cached)
        return layer(given.text, _mask(step, given.text, given.mask, given.other_mask))
    if step.key not in generation.scores:
        text, mask, other = given.text, given.mask, given.other_mask
        if text is None or (generation.text is not None and generation.text.shape[1] > text.shape[1]):
            text, mask, other = generation.text, generation.mask, None
        if text is None:
            raise _unread(step, text, 0)
        generation.scores[step.key] = layer(text, _mask(step, text, mask, other))
    return generation.scores[step.key]


def _mask(step: Route, text: Tensor, mask: Tensor | None, other: Any) -> Tensor | None:
    if other is None and (mask is None or mask.shape == text.shape[:2]):
        return mask
    found = other if mask is None else mask
    raise RoutingError(
        "a router cannot tell which tokens of a row are real",
        where=f"Router of {step.key}",
        got=f"an attention_mask of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__,
        allowed=f"none, or one of shape {list(text.shape[:2])}",
        try_="attention_mask with a 1 for each token of the text and a 0 for padding",
    )


def _unread(step: Route, text: Tensor | None, past: Any) -> RoutingError:
    behind = "new tokens, and earlier ones in a key-value cache"
    return RoutingError(
        "a router reads what a row says, and this call does not hold it",
        where=f"Router of {step.key}",
        got="neither input_ids nor inputs_embeds" if text is None else f"{behind} ({past})",
        allowed="the row's whole text as input_ids or inputs_embeds",
        try_="model.generate(...), which keeps what the prompt was given; use_cache=False; or the encoder's input_ids "
        "beside encoder_outputs",
    )
