"""The config of MTL-LoRA."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ..lora import LoRA
from ..lora.config import LinearUpdate

__all__ = ["MATRICES", "MTLLoRA"]

MATRICES = ("full", "diagonal")


@dataclass(frozen=True)
class MTLLoRA(LinearUpdate):
    """``y = W x + s (sum_i p_i B_i) L A x``, ``p = softmax(w / temperature)`` (Yang et al. 2024, arXiv:2410.09437).

    A and the n_up matrices B_i belong to all tasks of a group, L and w to each task alone.

    Args:
        r: Rank.
        n_up: Number of the matrices B_i, n in the paper.
        lora_alpha: Scale of the update, divided by the rank (or its root): ``s = lora_alpha / r``.
        temperature: The lower, the more one B_i has of a task's mixture.
        target_modules: Which linears, as of LoRA: roles, ends of module paths, regular expressions, or "all-linear".
            Of tables, convolutions and parameters there is no such update.
        dropout: Dropout on what the update reads.
        use_rslora: Divide by the root of the rank.
        task_matrix: L is any matrix ``[R, R]`` (``"full"``, as in the paper) or its diagonal alone (``"diagonal"``).
        group: Adapters of one model that name the same group have one A and one set of B_i.
        init: ``"lora"``: A Kaiming-uniform, B_i zero, L the identity, w drawn as in the published code, so that a
            group starts at the base. ``"normal"``: B_i N(0, 0.02), for tests and ablations.
    """

    method: ClassVar[str] = "mtl_lora"
    # What an update of LoRA may have beside these, and this one has not.
    gate: ClassVar[str] = "none"
    bias: ClassVar[bool] = False
    dora: ClassVar[bool] = False

    r: int = 8
    n_up: int = 3
    lora_alpha: float = 16.0
    temperature: float = 0.5
    target_modules: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0
    use_rslora: bool = False
    task_matrix: str = "full"
    group: str = "default"
    init: str = "lora"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_update()
        self.require_positive("n_up")
        self.require_one_of("task_matrix", MATRICES)
        heat = self.temperature
        if isinstance(heat, bool) or not isinstance(heat, (int, float)) or not 0 < heat < math.inf:
            self.fail("temperature", heat, "a number above 0")
        if not isinstance(self.group, str) or not self.group:
            self.fail("group", self.group, "a name")

    def as_lora(self) -> LoRA:
        """Return the plain LoRA of one task."""
        more = {"dropout": self.dropout, "use_rslora": self.use_rslora, "init": self.init}
        return LoRA(self.r, self.lora_alpha, self.target_modules, layers=self.layers, stack=self.stack, **more)

    def shape(self) -> MTLLoRA:
        """Return what all adapters of a group have in common: the rest is each one's own."""
        own = {"lora_alpha": 16.0, "temperature": 0.5, "use_rslora": False, "task_matrix": "full", "init": "lora"}
        return replace(self, **own)
