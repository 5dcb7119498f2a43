"""AdapterFusion as a registered method: it is added to adapters, not attached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hfadapt import Capabilities, Fuse, Method, Place

from .adding import add_fusion, make_layers
from .config import FusionConfig
from .recording import prune_fusion, record_fusion, restore_kept
from .regularizer import fusion_regularizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap
    from hfadapt.runtime import Attachment

__all__ = ["FusionMethod"]


class FusionMethod(Method):
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
    exports: ClassVar[Mapping[str, Any]] = {
        "add_fusion": add_fusion,
        "fusion_regularizer": fusion_regularizer,
        "prune_fusion": prune_fusion,
        "record_fusion": record_fusion,
    }

    def place(self, config: FusionConfig, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        """Refuse: a fusion has no place of its own."""
        raise self.refuse(
            "a fusion is added to adapters, not attached",
            arch,
            try_="attach the adapters, then hfadapt.add_fusion(model, hfadapt.Fuse('a', 'b'))",
        )

    def restore_fusion(
        self, model: PreTrainedModel, node: Fuse, fields: Mapping[str, Any], kept: Mapping[str, list[str]]
    ) -> None:
        """Make the layers of a saved fusion."""
        make_layers(model, node, FusionConfig.from_dict(fields))  # type: ignore[arg-type]
        restore_kept(model, node, dict(kept))
        state: Attachment = model._hfadapt  # type: ignore[assignment]
        state.fusions[node].kept.update({k: tuple(v) for k, v in kept.items()})
