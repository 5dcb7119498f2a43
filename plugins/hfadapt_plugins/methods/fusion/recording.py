"""Which adapters a fusion uses: recording of its weights, pruning, and a heat map."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hfadapt import Fuse, attachment
from hfadapt.errors import CompositionError

from .adding import fusion_layers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from hfadapt.routing import Routing

    from .layer import FusionLayer

__all__ = ["FusionRecord", "LayerRecord", "prune_fusion", "record_fusion"]


class LayerRecord:
    """Sums of the weights of one layer."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.totals = dict.fromkeys(names, 0.0)
        self.tokens = 0

    def add(self, names: list[str], weights: Tensor, routing: Routing) -> None:
        """Count one call: ``weights`` ``[B, T, N]``, over real tokens where a mask says which are."""
        mask = routing.mask
        flat = weights.reshape(-1, weights.shape[-1])
        if mask is not None and mask.numel() == flat.shape[0]:
            flat = flat[mask.reshape(-1).bool()]
        for name, total in zip(names, flat.double().sum(0).tolist(), strict=True):
            self.totals[name] += total
        self.tokens += flat.shape[0]

    @property
    def means(self) -> dict[str, float]:
        """Mean weight of each adapter."""
        return {name: total / max(self.tokens, 1) for name, total in self.totals.items()}


class FusionRecord:
    """Mean fusion weights by layer.

    Args:
        layers: One record a fusion layer, by path.
    """

    def __init__(self, layers: dict[str, LayerRecord]) -> None:
        self.layers = layers

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """Mean weight of each adapter in each layer that ran (AdapterDrop leaves layers out)."""
        return {path: record.means for path, record in self.layers.items() if record.tokens}

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw a heat map, layers down and adapters across; needs matplotlib (``hfadapt[report]``).

        Args:
            path: Where to save the picture; None to only return the figure.
        """
        import matplotlib

        matplotlib.use("Agg", force=False)
        from matplotlib import pyplot as plt

        means = self.means
        names = list(next(iter(means.values()), {}))
        table = [[row[n] for n in names] for row in means.values()]
        figure, axes = plt.subplots(figsize=(1.2 + 0.9 * len(names), 1.2 + 0.35 * max(len(table), 1)))
        image = axes.imshow(table, vmin=0.0, vmax=1.0, aspect="auto", cmap="viridis")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(table)), [_short(p) for p in means], fontsize=7)
        figure.colorbar(image, ax=axes, label="mean fusion weight")
        figure.tight_layout()
        if path is not None:
            figure.savefig(path, dpi=150)
        plt.close(figure)
        return figure


def _short(path: str) -> str:
    return path.partition(".hfadapt.")[0]


@contextlib.contextmanager
def record_fusion(model: nn.Module, node: Fuse | None = None) -> Iterator[FusionRecord]:
    """Record the weights of fusion layers inside a ``with`` block.

    Args:
        model: A model with fusion layers.
        node: Only the layers of this fusion.

    Raises:
        CompositionError: there are none.
    """
    layers = _require(model, node)
    record = FusionRecord({path: LayerRecord(layer.names) for path, layer in layers.items()})
    try:
        for path, layer in layers.items():
            layer.record = record.layers[path]
        yield record
    finally:
        for layer in layers.values():
            layer.record = None


def _require(model: nn.Module, node: Fuse | None) -> dict[str, FusionLayer]:
    layers = fusion_layers(model, node)
    if not layers:
        raise CompositionError(
            "the model has no such fusion",
            where=type(model).__name__,
            got=repr(node),
            allowed="a fusion that add_fusion added",
            try_="hfadapt.add_fusion(model, Fuse('a', 'b'))",
        )
    return layers


def prune_fusion(model: PreTrainedModel, record: FusionRecord, keep: int, node: Fuse | None = None) -> dict[str, Any]:
    """Keep the adapters with the largest mean weight in each fusion layer (Rücklé et al. 2021, section 5).

    Args:
        model: A model with fusion layers.
        record: What ``record_fusion`` gave, over the training data.
        keep: How many adapters stay in each layer.
        node: Only the layers of this fusion.

    Returns:
        The adapters kept, by layer. Layers that never ran while it was recorded keep all.

    Raises:
        CompositionError: there is no such fusion, nothing was recorded for it, or ``keep`` is not between 1 and the
            number of adapters.
    """
    layers = _require(model, node)
    most = max(len(layer.names) for layer in layers.values())
    if type(keep) is not int or not 1 <= keep <= most:
        raise CompositionError(
            "cannot keep that many adapters",
            where="prune_fusion(keep=...)",
            got=repr(keep),
            allowed=f"1 to {most}",
            try_=f"keep={max(1, most - 1)}",
        )
    state = attachment(model)
    recorded = record.means
    if not any(path in recorded for path in layers):
        raise CompositionError(
            "nothing was recorded for this fusion",
            where=next(iter(layers)),
            got=f"records of {len(recorded)} other layers" if recorded else "an empty record",
            allowed=f"a record of some of its {len(layers)} layers",
            try_="run the training data through the model inside 'with hfadapt.record_fusion(model) as record'",
        )
    kept: dict[str, Any] = {}
    for path, layer in layers.items():
        if path not in recorded:
            continue
        means = recorded[path]
        ranked = sorted(layer.kept, key=lambda n, m=means: (-m[n], n))[:keep]
        layer.kept = tuple(n for n in layer.names if n in ranked)
        kept[path] = layer.kept
        state.fusions[Fuse(*layer.names)].kept[path] = layer.kept
    return kept


def restore_kept(model: nn.Module, node: Fuse, kept: dict[str, Any]) -> None:
    """Prune as a saved folder says."""
    layers = fusion_layers(model, node)
    for path, names in kept.items():
        layers[path].kept = tuple(names)
