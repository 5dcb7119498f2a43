"""The config of LoRA."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import ClassVar

from hfadapt import MethodConfig

from ..shared.gating import check_gate

__all__ = ["INITS", "LinearUpdate", "LoRA", "is_pattern"]

# "lora": A Kaiming-uniform, B zero, so training starts at the base; "normal": both N(0, 0.02), for tests and ablations.
INITS = ("lora", "normal")


def is_pattern(name: str) -> bool:
    """Say whether an entry of ``target_modules`` is a regular expression: it holds what no module's name does."""
    return re.fullmatch(r"[\w.-]+", name) is None


class LinearUpdate(MethodConfig):
    """Base of the configs of updates ``s B A`` of linears, however B and A are made."""

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    dropout: float
    use_rslora: bool
    init: str

    def as_lora(self) -> LoRA:
        """Return the config of the plain LoRA that computes the same once B and A are made."""
        raise NotImplementedError  # of this base alone: LoRA and MTLLoRA have theirs, and nobody makes a LinearUpdate

    def check_update(self) -> None:
        """Raise ``ConfigError`` unless the fields that all updates have hold what is allowed."""
        if isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", (self.target_modules,))
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        self.require_positive("r")
        self.require_fraction("dropout")
        self.require_one_of("use_rslora", (True, False))
        self.require_one_of("init", INITS)
        alpha = self.lora_alpha
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not alpha > 0:
            self.fail("lora_alpha", alpha, "a number above 0")
        names = self.target_modules
        if not names or not all(isinstance(n, str) and n for n in names):
            self.fail("target_modules", names, "roles or module names, at least one")
        for name in names:
            if is_pattern(name):
                try:
                    re.compile(name)
                except re.error as error:
                    self.fail("target_modules", name, f"a name, or a regular expression (this is none: {error})")
        _ = self.scale  # kept before torch.compile traces a call, which cannot take the property's lock

    @functools.cached_property
    def scale(self) -> float:
        """The factor s of the update."""
        return float(self.lora_alpha) / (self.r**0.5 if self.use_rslora else self.r)


@dataclass(frozen=True)
class LoRA(LinearUpdate):
    """``y = W x + s B A x`` with ``s = lora_alpha / r`` (Hu et al. 2021, arXiv:2106.09685, eq. 3).

    Args:
        r: Rank.
        lora_alpha: Scale of the update, divided by the rank (or its root).
        target_modules: What is updated: roles of linears (``query``, ``key``, ``value``, ``output``, ``ffn_in``,
            ``ffn_out``; with ``self_`` or ``cross_`` in front for one of two attentions), names of modules as in their
            path's end (``q_proj``, ``attention.self.query``), regular expressions for whole paths
            (``.*layers.[02].*_proj``), or ``"all-linear"``: the linears of the map's layers; of a model without a map
            those in lists of modules, or without such lists all, its output head left out. A name may be that of a
            table of vectors, such as the word embeddings, and where it is no linear's, of convolutions, and else of
            parameters that a module reads itself
            (``experts.gate_up_proj``: one update for each of the matrices that are stacked in it). A role that a fused
            linear serves (GPT-2's ``c_attn``) gets its own slice of that linear's output. Roles are those of the
            model's map; in a model without one every entry is a name.
        dropout: Dropout on what the update reads; ids of a table have nothing to drop.
        use_rslora: Divide by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732).
        gate: ``"none"``, ``"token"``, ``"mean"`` or ``"mean_padded"``: UniPELT's gate on the update.
        init: ``"lora"`` or ``"normal"``.
        bias: A trained bias c behind B: ``s (B A x + c)``, from zero.
        dora: Learn the length of each row of ``W + s B A`` apart (DoRA, Liu et al. 2024, arXiv:2402.09353).
    """

    method: ClassVar[str] = "lora"

    r: int = 8
    lora_alpha: float = 16.0
    target_modules: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0
    use_rslora: bool = False
    gate: str = "none"
    init: str = "lora"
    bias: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_update()
        self.require_one_of("bias", (True, False))
        self.require_one_of("dora", (True, False))
        check_gate(self)
        if self.dora and self.gate != "none":
            self.fail("dora", True, "False with a gate")

    def as_lora(self) -> LoRA:
        """Return itself."""
        return self
