"""The reparametrisation of prefixes: one small network for each kind of attention makes the prefixes of all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hfadapt import select_layers
from hfadapt.runtime import Prepared

if TYPE_CHECKING:
    from hfadapt import ArchitectureMap, Site
    from hfadapt.architecture import LayerMap, StackMap
    from hfadapt.routing import Routing

    from .config import PrefixConfig

__all__ = ["PrefixNetwork", "PrefixTables", "attentions_of"]


def attentions_of(config: PrefixConfig, layer: LayerMap) -> list[bool]:
    """Return which attentions of a layer get a prefix: False for self-attention, True for cross-attention.

    What stands in the place of attention without heads (a state space, linear attention) gets none.
    """
    wanted = [cross for cross, word in ((False, "self"), (True, "cross")) if word in config.attention]
    return [cross for cross in wanted if layer.stack.num_heads and layer.has("cross" if cross else "attention")]


def _kind(layer: LayerMap, arch: ArchitectureMap) -> str:
    """A word for layers whose heads are not those of the stack's commonest kind (Gemma 4): a network of their own."""

    def sizes(stack: StackMap) -> tuple[int, int, int]:
        return stack.num_kv_heads, stack.head_dim, stack.value_dim

    usual = next(stack for stack in arch.stacks if stack.path == layer.stack.path)
    own = sizes(layer.stack)
    return "" if own == sizes(usual) else "_" + "x".join(map(str, own))


class PrefixNetwork(nn.Module):
    """``Linear(tanh(Linear(Embedding)))``: ``[P, D] -> [P, M] -> [P, 2 L G K]`` (Li and Liang 2021, section 4.3).

    The last axis is layer by layer, each layer's keys before its values, each of them head by head.

    Args:
        config: Length, inner width and initial values.
        width: D, the model's hidden size.
        layers: L, how many layers of this attention have the prefix.
        heads: G, key-value heads.
        head_dim: K.
        value_dim: Width of a value's head.
    """

    def __init__(
        self, config: PrefixConfig, width: int, layers: int, heads: int, head_dim: int, value_dim: int
    ) -> None:
        super().__init__()
        self.layers, self.heads, self.widths = layers, heads, (head_dim, value_dim)
        self.embedding = nn.Parameter(torch.randn(config.num_virtual_tokens, width) * config.init_std)
        self.down = nn.Linear(width, config.mlp_size)
        self.up = nn.Linear(config.mlp_size, layers * heads * (head_dim + value_dim))

    def forward(self) -> tuple[Tensor, ...]:
        """Return the prefixes of every layer, ``[G, P, K]``: layer l's keys at ``2 l``, its values behind."""
        made = self.up(torch.tanh(self.down(self.embedding)))
        parts = made.split([self.heads * width for width in self.widths * self.layers], -1)
        return tuple(part.unflatten(-1, (self.heads, -1)).transpose(0, 1).contiguous() for part in parts)


class PrefixTables(Prepared):
    """The networks of one adapter, by stack and kind of attention; run once a forward, before the first layer."""

    def __init__(self, config: PrefixConfig, arch: ArchitectureMap) -> None:
        super().__init__()
        self.networks = nn.ModuleDict()
        # (stack, slot, layer) -> the network's name and the layer's number in it
        self.places: dict[tuple[str, str, int], tuple[str, int]] = {}
        groups: dict[str, list[LayerMap]] = {}
        for layer in select_layers(config, arch):
            for cross in attentions_of(config, layer):
                key = f"{layer.stack.path.replace('.', '_')}_{'cross' if cross else 'self'}{_kind(layer, arch)}"
                slot = "cross_core" if cross else "attention_core"
                self.places[(layer.stack.path, slot, layer.index)] = (key, len(groups.setdefault(key, [])))
                groups[key].append(layer)
        for key, layers in groups.items():
            stack = layers[0].stack
            self.networks[key] = PrefixNetwork(
                config,
                stack.hidden_size,
                len(layers),
                stack.num_kv_heads,
                stack.head_dim,
                stack.value_dim or stack.head_dim,
            )

    def prepare(self, routing: Routing | None = None) -> dict[str, tuple[Tensor, ...]]:
        """Return every network's prefixes, each layer's keys and values ``[G, P, K]``."""
        return {key: network() for key, network in self.networks.items()}

    def pick(self, tables: dict[str, tuple[Tensor, ...]], site: Site) -> tuple[Tensor, Tensor]:
        """Return the keys and values ``[G, P, K]`` of one place from what ``prepare`` returned."""
        key, number = self.places[(site.stack, site.slot, site.layer)]
        return tables[key][2 * number], tables[key][2 * number + 1]
