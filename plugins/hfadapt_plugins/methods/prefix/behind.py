"""Tokens that stand behind a prefix as behind other tokens: their positions go on where the prefix ends.

What counts positions is another leaf in every family: a table, a rotation that all layers share, or a bias by distance.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfadapt import AttentionCall, Delta, Place, Rows, Weights
from hfadapt.errors import RoutingError
from hfadapt.method import sites
from hfadapt.runtime import takes_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap, Method
    from hfadapt.architecture import StackMap

    from .config import PrefixConfig

__all__ = ["BehindDelta", "UntypedDelta", "behind_places", "distance_biases", "has_distances"]

_TABLES = ("position_embeddings", "wpe", "embed_positions", "rotary_emb")
_TYPES = "token_type_embeddings"


class BehindDelta(Delta):
    """Adds the prefix's length to the positions ``[B, T]`` of its rows; those of padding stay."""

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """It has none."""

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Return the positions, int64 ``[B, T]``.

        Raises:
            RoutingError: they run past the end of the model's table.
        """
        counts = [self.config(name).num_virtual_tokens for name in rows.names]
        lengths = [torch.tensor(count, device=value.device, dtype=value.dtype) for count in counts]
        leaf: Any = rows.leaf
        counted = value >= 0
        if getattr(leaf, "padding_idx", None) is not None:
            counted &= value != leaf.padding_idx
        made = torch.where(counted, value + rows.gather(lengths, 0.0).view(-1, 1), value)
        if isinstance(leaf, nn.Embedding) and not torch.compiler.is_compiling():
            room = leaf.num_embeddings - getattr(leaf, "offset", 0)
            # the largest number itself would be waited for on other devices
            last = int(made.max()) if made.device.type == "cpu" and made.numel() else value.shape[1] - 1
            if last >= room:
                raise RoutingError(
                    "tokens behind a prefix stand past the model's last position",
                    where=self.site.leaf,
                    got=f"a prefix of {max(counts)} and {value.shape[1]} tokens",
                    allowed=f"{room} positions",
                    try_="shorter inputs",
                )
        return made


class UntypedDelta(Delta):
    """Sets the token types ``[B, T]`` of its rows to 0."""

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """It has none."""

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        """Return the token types, int64 ``[B, T]``."""
        if rows.batch.uniform:
            return torch.zeros_like(value)
        return value.masked_fill((rows.batch.ids >= 0).view(-1, 1), 0)


def behind_places(
    method: Method, config: PrefixConfig, stacks: list[StackMap], arch: ArchitectureMap, model: PreTrainedModel
) -> Iterator[Place]:
    """Yield where the positions and token types of stacks are looked up.

    Raises:
        AttachError: a stack counts its positions in a way that is not known.
    """
    modules = dict(model.named_modules())
    for stack in stacks:
        beside = [stack.path.rpartition(".")[0], (stack.embedding or "").rpartition(".")[0]]
        above = dict.fromkeys(f"{path}." if path else "" for path in beside)
        found = [f"{path}{name}" for path in above for name in _TABLES if f"{path}{name}" in modules]
        tables = [path for path in found if takes_numbers(modules[path])]
        distances = any(
            has_distances(modules[layer.attention.module]) for layer in arch.layers(stack) if layer.has("attention")
        )
        if config.tokens == "keys_behind":
            if distances:
                continue
            raise method.refuse("the model counts no distances between tokens", arch, try_="tokens='apart'")
        if (len(tables) != 1 or len(found) != 1) and not (distances and not found):
            raise method.refuse(
                "the model counts positions in a way in which tokens cannot be put behind a prefix",
                arch,
                got=", ".join(f"{path} ({type(modules[path]).__name__})" for path in found) or "no table of positions",
                allowed="one table of positions, one rotation for all layers, or T5's biases by distance",
                try_="tokens='apart'",
            )
        for path in tables:
            yield Place(sites.numbers(stack, path, "positions"), BehindDelta)
        types = [f"{path}{_TYPES}" for path in above if f"{path}{_TYPES}" in modules]
        if config.tokens == "behind_untyped":
            yield from (Place(sites.numbers(stack, path, "token_types"), UntypedDelta) for path in types)


def has_distances(attention: nn.Module) -> bool:
    """Say whether an attention adds a learned bias for the distance of two tokens."""
    return hasattr(attention, "compute_bias") and hasattr(attention, "relative_attention_num_buckets")


def distance_biases(
    call: AttentionCall, rows: Rows, stack: str, config: PrefixConfig, lengths: list[int]
) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """Return what is added to the products with each prefix ``[1, H, Tq, P]``, and with the row's own keys beside it.

    None in place of the first where distances do not count, in place of the second where the keys' distances stay. The
    first layer has the table of all, so that the others find there what it made.

    Raises:
        RoutingError: the first layer ran without the prefix.
    """
    module: Any = rows.leaf
    if not has_distances(module) or call.options.get("position_bias") is None:
        return None, None
    shifted = config.tokens == "keys_behind"
    kept, queries, keys = rows.routing.prepared, call.query.shape[2], call.key.shape[2]
    found: list[Tensor] = []
    for length in lengths:
        total = length + keys if shifted else length
        key = (stack, "distances", config.tokens, total, queries)
        if module.has_relative_attention_bias:
            before = rows.routing.cached + (0 if shifted else length)
            if "past_seen_tokens" in inspect.signature(module.compute_bias).parameters:
                told: dict[str, Any] = {"past_seen_tokens": before}
            else:  # older releases of transformers
                told = {"cache_position": torch.arange(queries, device=call.query.device) + before}
            kept[key] = module.compute_bias(queries, total, device=call.query.device, **told)
        if key not in kept:
            raise RoutingError(
                "the first layer knows what distances count, and ran without the prefix",
                where=stack,
                got="no distances of this call from a layer before",
                allowed="a prefix in the first layer, which alone has the table of distances",
                try_="the prefix in every layer, and no AdapterDrop; or tokens='apart'",
            )
        found.append(kept[key])
    if not shifted:
        return found, None
    split = [(bias[..., :length], bias[..., length:]) for bias, length in zip(found, lengths, strict=True)]
    return [one for one, _ in split], [rest for _, rest in split]
