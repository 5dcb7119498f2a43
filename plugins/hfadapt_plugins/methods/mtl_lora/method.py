"""Where MTL-LoRA's updates go, and which adapters may share them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hfadapt import Capabilities, Method, Place
from hfadapt.runtime import deltas_of

from ..lora.combining import combine_loras
from ..lora.targets import ROLES, find_targets, refuse_only_read
from .config import MTLLoRA
from .delta import MTLLoRADelta

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap
    from hfadapt.method import Combination, Combined

__all__ = ["MTLLoRAMethod"]


class MTLLoRAMethod(Method):
    """Low-rank updates of linears that the tasks of a group share, each with a mixture of its own."""

    name = "mtl_lora"
    config_class = MTLLoRA
    capabilities = Capabilities(mergeable=True, fusable=True, ops=("grouped_lora",))
    family = "shared by tasks"
    paper = "Yang et al. 2024, arXiv:2410.09437"
    summary = "a low-rank update that tasks share, each with a mixture and a small matrix of its own"
    tests = "tests/unit/methods/test_mtl_lora.py"

    by_name = True

    def needs_map(self, config: MTLLoRA) -> bool:
        """Roles and stacks by their kind are the map's; names are the model's."""
        return config.stack != "all" or bool(set(config.target_modules) & set(ROLES))

    def starts_as_base(self, config: MTLLoRA) -> bool:
        """The B_i are zero in the published initialisation; an adapter that joins a group starts with the group's."""
        return config.init == "lora"

    def combine(self, model: PreTrainedModel, weights: Mapping[str, float], how: Combination) -> Combined:
        """Into a plain LoRA, by any of the methods of ``hfadapt.combine``."""
        return combine_loras(model, weights, how)

    def place(self, config: MTLLoRA, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        """One update at every linear that ``config.target_modules`` names.

        Raises:
            AttachError: a name means something else than linears, or the adapters of its group are of another shape.
        """
        self._check_group(config, arch, model)
        for target in find_targets(config.target_modules, config, arch, model):
            site = target.site
            if site.slot in ("table", "convolution") or site.parameter:
                raise self.refuse(
                    "a shared update is one of linears",
                    arch,
                    got=f"{site.leaf}{site.parameter and '.'}{site.parameter}",
                    allowed="linears",
                    try_="a LoRA of each task's own for it: hfadapt.LoRA(target_modules=...)",
                )
            refuse_only_read(self, site, arch, model)
            # Rows with different dropout cannot share one call of the op.
            flags = (target.part, f"p{config.dropout:g}".replace(".", "_") if config.dropout else "")
            yield Place(site, MTLLoRADelta, "_".join(flag for flag in flags if flag))

    def _check_group(self, config: MTLLoRA, arch: ArchitectureMap, model: PreTrainedModel) -> None:
        """Raise unless the adapters that are in the group already have the same A and B_i at the same places."""
        mates: dict[str, list[MTLLoRA]] = {}
        for _, delta in deltas_of(model):
            for name in delta.names if isinstance(delta, MTLLoRADelta) else ():
                one: MTLLoRA = delta.config(name)
                if one.group == config.group:
                    mates.setdefault(name, []).append(one)
        for name, configs in mates.items():
            if config.shape() not in [one.shape() for one in configs]:
                raise self.refuse(
                    f"adapter {name!r} of the group {config.group!r} has other shared matrices",
                    arch,
                    got=config,
                    allowed=configs[0],
                    try_="the same r, n_up, target_modules, dropout, layers and stack; or another group=",
                )
