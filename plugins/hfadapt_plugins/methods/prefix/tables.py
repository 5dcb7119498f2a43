"""The reparametrisation of prefixes: one small network for each kind of attention makes the prefixes of all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hfadapt import select_layers
from hfadapt.runtime import Prepared

if TYPE_CHECKING:
    from hfadapt import ArchitectureMap, Site
    from hfadapt.architecture import LayerMap
    from hfadapt.routing import Routing

    from .config import PrefixConfig

__all__ = ["PrefixNetwork", "PrefixTables", "attentions_of"]


def attentions_of(config: PrefixConfig, layer: LayerMap) -> list[bool]:
    """Return which attentions of a layer get a prefix: False for self-attention, True for cross-attention."""
    wanted = [cross for cross, word in ((False, "self"), (True, "cross")) if word in config.attention]
    return [cross for cross in wanted if not cross or layer.cross_attention is not None]


class PrefixNetwork(nn.Module):
    """``Linear(tanh(Linear(Embedding)))``: ``[P, D] -> [P, M] -> [P, 2 L G K]`` (Li and Liang 2021, section 4.3).

    The last axis is layer by layer, each layer's keys before its values, each of them head by head.

    Args:
        config: Length, inner width and initial values.
        width: D, the model's hidden size.
        layers: L, how many layers of this attention have the prefix.
        heads: G, key-value heads.
        head_dim: K.
    """

    def __init__(self, config: PrefixConfig, width: int, layers: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.shape = (config.num_virtual_tokens, 2 * layers, heads, head_dim)
        self.embedding = nn.Parameter(torch.randn(config.num_virtual_tokens, width) * config.init_std)
        self.down = nn.Linear(width, config.mlp_size)
        self.up = nn.Linear(config.mlp_size, 2 * layers * heads * head_dim)

    def forward(self) -> Tensor:
        """Return the prefixes of every layer, ``[2 L, G, P, K]``: layer l's keys at ``2 l``, its values behind."""
        made = self.up(torch.tanh(self.down(self.embedding)))
        return made.view(self.shape).permute(1, 2, 0, 3).contiguous()


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
                key = f"{layer.stack.path.replace('.', '_')}_{'cross' if cross else 'self'}"
                slot = "cross_core" if cross else "attention_core"
                self.places[(layer.stack.path, slot, layer.index)] = (key, len(groups.setdefault(key, [])))
                groups[key].append(layer)
        for key, layers in groups.items():
            stack = layers[0].stack
            self.networks[key] = PrefixNetwork(
                config, stack.hidden_size, len(layers), stack.num_kv_heads, stack.head_dim
            )

    def prepare(self, routing: Routing | None = None) -> dict[str, Tensor]:
        """Return every network's prefixes, ``[2 L, G, P, K]``."""
        return {key: network() for key, network in self.networks.items()}

    def pick(self, tables: dict[str, Tensor], site: Site) -> tuple[Tensor, Tensor]:
        """Return the keys and values ``[G, P, K]`` of one place from what ``prepare`` returned."""
        key, number = self.places[(site.stack, site.slot, site.layer)]
        return tables[key][2 * number], tables[key][2 * number + 1]
