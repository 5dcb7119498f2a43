"""AdapterFusion as a registered method: it is added to adapters, not attached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hfadapt import Capabilities, Fuse
from hfadapt.method import CompositionMethod

from .adding import add_fusion, make_layers
from .config import FusionConfig
from .recording import prune_fusion, record_fusion, restore_kept
from .regularizer import fusion_regularizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hfadapt.routing import Composition
    from hfadapt.runtime import Attachment

__all__ = ["FusionMethod"]


class FusionMethod(CompositionMethod):
    """Attention over the outputs of several adapters."""

    name = "fusion"
    config_class = FusionConfig
    capabilities = Capabilities(
        ops=("adapter_fusion",),
        reasons={"mergeable": "its weights depend on the input", "fusable": "it is the fusion"},
    )
    family = "fusion"
    paper = "Pfeiffer et al. 2021, arXiv:2005.00247"
    summary = "attention over the outputs of several adapters"
    tests = "tests/unit/methods/test_fusion.py"
    added_by = "hfadapt.add_fusion(model, hfadapt.Fuse('a', 'b'))"
    exports: ClassVar[Mapping[str, Any]] = {
        "add_fusion": add_fusion,
        "fusion_regularizer": fusion_regularizer,
        "prune_fusion": prune_fusion,
        "record_fusion": record_fusion,
    }

    def restore(
        self, model: PreTrainedModel, node: Composition, fields: Mapping[str, Any], kept: Mapping[str, list[str]]
    ) -> None:
        """Make the layers of a saved fusion."""
        assert isinstance(node, Fuse)
        make_layers(model, node, FusionConfig.from_dict(fields))  # type: ignore[arg-type]
        restore_kept(model, node, dict(kept))
        state: Attachment = model._hfadapt  # type: ignore[assignment]
        state.fusions[node].kept.update({k: tuple(v) for k, v in kept.items()})
