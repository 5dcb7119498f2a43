"""Where LoRA's updates go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hfadapt import Capabilities, Method, Place

from ..shared.gating import gate_variant
from .config import LoRA
from .convolution import ConvolutionDelta
from .delta import LoRADelta
from .dora import DoRADelta
from .parameter import ParameterDelta
from .peft_files import read_lora, save_peft
from .table import TableDelta
from .targets import ROLES, find_targets, refuse_only_read

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap
    from hfadapt.method import Combination, Combined

__all__ = ["LoRAMethod"]


class LoRAMethod(Method):
    """Low-rank updates of linears, tables of vectors, convolutions and parameters."""

    name = "lora"
    config_class = LoRA
    capabilities = Capabilities(mergeable=True, fusable=True, ops=("grouped_lora",))
    family = "unified view"
    paper = "Hu et al. 2021, arXiv:2106.09685"
    summary = "low-rank update of any linear (also of the slices of a fused one), table of vectors or convolution"
    tests = "tests/unit/methods/test_lora.py"
    exports: ClassVar[Mapping[str, Any]] = {"save_peft": save_peft}
    foreign: ClassVar[Mapping[str, Mapping[str, Any]]] = {"peft": {"LORA": read_lora}}

    by_name = True

    def needs_map(self, config: LoRA) -> bool:
        """Roles, stacks by their kind and gates over a row's tokens are the map's; names are the model's."""
        return config.stack != "all" or config.gate != "none" or bool(set(config.target_modules) & set(ROLES))

    def starts_as_base(self, config: LoRA) -> bool:
        """B is zero in the published initialisation."""
        return config.init == "lora"

    def combine(self, model: PreTrainedModel, weights: Mapping[str, float], how: Combination) -> Combined:
        """By any of the methods of ``hfadapt.combine``."""
        from .combining import combine_loras

        return combine_loras(model, weights, how)

    def place(self, config: LoRA, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        """One update at everything that ``config.target_modules`` names.

        Raises:
            AttachError: a name matches nothing, or means what takes no such update.
        """
        for target in find_targets(config.target_modules, config, arch, model):
            if target.site.slot == "table":
                if config.dora or config.bias or config.gate != "none":
                    raise self.refuse(
                        "a table of vectors takes A and B alone",
                        arch,
                        got=f"{target.site.leaf} with {config}",
                        try_="a LoRA of its own for it: a tuple of two",
                    )
                yield Place(target.site, TableDelta)
                continue
            if target.site.parameter:
                if config.dora or config.bias or config.gate != "none" or config.dropout:
                    raise self.refuse(
                        "a parameter that a module reads itself takes A and B alone, without dropout",
                        arch,
                        got=f"{target.site.leaf}.{target.site.parameter} with {config}",
                        try_="a LoRA of its own for it: a tuple of two",
                    )
                yield Place(target.site, ParameterDelta, target.site.parameter)
                continue
            refuse_only_read(self, target.site, arch, model)
            convolution = target.site.slot == "convolution"
            if convolution and (config.dora or config.gate != "none"):
                raise self.refuse(
                    "a convolution takes A, B and a bias alone",
                    arch,
                    got=f"{target.site.leaf} with {config}",
                    try_="a LoRA of its own for it: a tuple of two",
                )
            # Rows with different dropout cannot share one call of the op.
            if config.dora and target.part:
                raise self.refuse(
                    "DoRA of a slice of a fused linear",
                    arch,
                    got=f"{target.part} of {target.site.leaf}",
                    try_=f"target_modules=({target.site.leaf.rpartition('.')[2]!r},) for all of it",
                )
            words = {"dora": config.dora, "bias": config.bias}
            flags = [target.part, gate_variant(config), *(word for word, on in words.items() if on)]
            flags.append(f"p{config.dropout:g}" if config.dropout else "")
            variant = "_".join(flag for flag in flags if flag).replace(".", "_")
            kind = ConvolutionDelta if convolution else DoRADelta if config.dora else LoRADelta
            yield Place(target.site, kind, variant)
