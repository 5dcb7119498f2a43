"""Per-task poolers: ``tanh(W_t h_0 + b_t)`` in place of the base's pooler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from torch import Tensor, nn
from transformers import PreTrainedModel

from hfadapt import ArchitectureMap, Capabilities, Delta, Method, Place, Rows, Site, Weights

from ..shared import change_rows
from .config import Pooler

__all__ = ["PoolerDelta", "PoolerMethod"]


class PoolerDelta(Delta):
    """Replaces the pooled vector by that of the adapter's own copy of the pooler."""

    def init_weights(self, weights: Weights, config: Pooler, shared: nn.Module | None) -> None:
        assert shared is not None

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        def compute(index: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
            # Of the whole batch, as the base's own does: how its product rounds depends on the number of rows.
            return pick(self.shared(rows.names[index])(source))

        return change_rows(rows.batch, value, compute)


class PoolerMethod(Method):
    """A copy of the base's pooler for each task."""

    name = "pooler"
    config_class = Pooler
    capabilities = Capabilities(
        reasons=dict.fromkeys(("mergeable", "fusable"), "it is a copy of the base's own module")
    )
    family = "PALs, top"
    paper = "Stickland & Murray 2019, arXiv:1902.02671, section 4.3"
    summary = "a pooler of each task's own"
    tests = "tests/unit/methods/test_task_functions.py"

    def place(self, config: Pooler, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        pooler = self._pooler(arch, model)
        linears = [m for m in pooler.modules() if isinstance(m, nn.Linear)]
        stack = arch.stacks[0]
        site = Site(
            "pooler",
            stack.path,
            stack.num_layers,  # above every layer, so that AdapterDrop never drops it
            arch.pooler or "",
            "output",
            linears[-1].out_features,
            reads_leaf_input=True,
            source_width=linears[0].in_features,
        )
        yield Place(site, PoolerDelta)

    def shared(self, config: Pooler, arch: ArchitectureMap, model: PreTrainedModel) -> nn.Module:
        made = copy.deepcopy(self._pooler(arch, model))
        made.requires_grad_(True)
        if hasattr(made, "hfadapt"):  # the copy is of the base's module, without the slot of earlier adapters
            from hfadapt.runtime import remove_our_hooks

            remove_our_hooks(made)
            del made.hfadapt
        return made

    def _pooler(self, arch: ArchitectureMap, model: PreTrainedModel) -> nn.Module:
        found = None
        if arch.pooler is not None:
            try:
                found = model.get_submodule(arch.pooler)
            except AttributeError:
                found = None
        if found is None or not any(isinstance(m, nn.Linear) for m in found.modules()):
            raise self.refuse("this model has no pooler", arch, allowed="a model with a pooler, such as BERT's")
        return found

    def starts_as_base(self, config: Pooler) -> bool:
        return True
