"""LHUC: one factor a hidden unit, task and layer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfadapt import ArchitectureMap, Capabilities, Delta, Method, Place, Rows, Weights, select_layers
from hfadapt.method import sites

from ..shared.norms import over_tokens
from .config import LHUC

__all__ = ["LHUCDelta", "LHUCMethod"]


class LHUCDelta(Delta):
    """``value * 2 sigmoid(c)``, every row with its own c; rows without an adapter are multiplied by exactly 1."""

    def init_weights(self, weights: Weights, config: LHUC, shared: nn.Module | None) -> None:
        weights.contribution = self.parameter((self.site.width,))

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        # Each adapter's on its own: how sigmoid rounds the last elements depends on how many there are.
        factors = [2 * torch.sigmoid(c) for c in self.weights("contribution", rows.names)]
        return value * over_tokens(rows.gather(factors, 1.0), value)


class LHUCMethod(Method):
    """A factor between 0 and 2 for every hidden unit that leaves a layer."""

    name = "lhuc"
    config_class = LHUC
    capabilities = Capabilities(
        reasons={
            "mergeable": "the factor acts behind the residual sum, where no weight of the base is",
            "fusable": "it multiplies, and adds no output that AdapterFusion could weigh",
        }
    )
    family = "PALs, within"
    paper = "Swietojanski & Renals 2014; Stickland & Murray 2019, arXiv:1902.02671, section 4"
    summary = "a learned factor for every hidden unit"
    tests = "tests/unit/methods/test_task_functions.py"

    def place(self, config: LHUC, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        for layer in select_layers(config, arch):
            yield Place(sites.layer_output(layer), LHUCDelta)

    def starts_as_base(self, config: LHUC) -> bool:
        return True
