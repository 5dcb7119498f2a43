"""The config of a method given by its design choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hfadapt import MethodConfig, Site

from ..prefix import PrefixConfig
from ..shared import INITS, UpDown, require_activation, require_scale

__all__ = ["BLOCKS", "COMPOSITIONS", "FORMS", "INSERTIONS", "LINEARS", "Design"]

FORMS = ("bottleneck", "low_rank", "prefix")
INSERTIONS = ("parallel", "sequential")
COMPOSITIONS = ("add", "scaled", "gated")
BLOCKS = ("ffn", "attention", "heads", "each_head", "layer")
LINEARS = ("query", "key", "value", "output", "ffn_in", "ffn_out")
_PREFIX_FORMS = {("softmax", "gated"): "concat", ("softmax", "add"): "no_gating", ("relu", "add"): "relu"}


@dataclass(frozen=True)
class Design(MethodConfig):
    """``h <- h + s dh``: what dh is, what it reads, which h, and how it is added (He et al. 2022, tables 1 and 2).

    Args:
        form: The functional form: ``"bottleneck"`` (``act(x W_down) W_up``), ``"low_rank"`` (``x W_down W_up``) or
            ``"prefix"`` (``softmax(x W_q P_k^T) P_v``).
        insertion: ``"parallel"`` reads what the modified module reads, ``"sequential"`` what it puts out.
        modified: The representations h, one or several: ``"ffn"``, ``"attention"`` (the sub-layer's output, behind
            W_o), ``"heads"`` (all heads as one vector, before W_o), ``"each_head"`` (every head on its own),
            ``"layer"``, or linears: ``"query"``, ``"key"``, ``"value"``, ``"output"``, ``"ffn_in"``, ``"ffn_out"``.
        composition: ``"add"`` (``h + dh``), ``"scaled"`` (``h + s dh``) or ``"gated"`` (``(1 - lambda) h + lambda dh``
            with lambda(x) the share of the attention that goes to the prefix).
        r: Width of the bottleneck, rank, or length of the prefix.
        s: Of ``"scaled"``: a number, ``"learned"`` (one a place) or ``"channel"`` (one a hidden unit).
        attention: Which attentions the words of ``modified`` mean: ``"self"``, ``"cross"``, or both.
        non_linearity: act; by default ``"relu"``, and of a prefix ``"softmax"`` (``"relu"`` makes it the multi-head
            parallel adapter with frozen queries).
        bias: Biases in both projections; by default in bottlenecks, not in low-rank forms.
        norm_before: A LayerNorm of the delta's own on what it reads.
        dropout: Probability of dropping a unit of the bottleneck, or an entry of the prefix.
        init: ``"identity"`` (the default but of a gated prefix) starts as the base; ``"normal"`` draws from N(0, 0.02).
    """

    method: ClassVar[str] = "design"

    form: str = "bottleneck"
    insertion: str = "parallel"
    modified: str | tuple[str, ...] = ("ffn",)
    composition: str = "add"
    r: int = 16
    s: float | str | None = None
    attention: str | tuple[str, ...] = ("self", "cross")
    non_linearity: str | None = None
    bias: bool | None = None
    norm_before: bool = False
    dropout: float = 0.0
    init: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_one_of("form", FORMS)
        self.require_one_of("insertion", INSERTIONS)
        self.require_one_of("composition", COMPOSITIONS)
        self._read_words("modified", (*BLOCKS, *LINEARS))
        self._read_words("attention", ("self", "cross"))
        self.require_positive("r")
        self.require_fraction("dropout")
        self.require_one_of("norm_before", (True, False))
        self._check_scale()
        if self.form == "prefix":
            self._check_prefix()
        else:
            self._check_projections()
        self.require_one_of("init", INITS)

    def _read_words(self, name: str, allowed: tuple[str, ...]) -> None:
        given = getattr(self, name)
        words = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, name, words)
        if not words or any(w not in allowed for w in words) or len(set(words)) != len(words):
            self.fail(name, given, f"one or more of {', '.join(map(repr, allowed))}")

    def _check_scale(self) -> None:
        if self.composition == "scaled":
            if self.s is None:
                self.fail("s", None, "a number, 'learned' or 'channel'", "s=4, or composition='add'")
            require_scale(self, "s")
        elif self.s is not None:
            self.fail("s", self.s, f"nothing with composition={self.composition!r}", "composition='scaled'")

    def _check_prefix(self) -> None:
        """A prefix is attention: it acts on every head, reads its queries, and has no projections to bias or norm."""
        if self.modified != ("each_head",):
            self.fail("modified", self.modified, "'each_head' with form='prefix': its queries are a head's own")
        if self.insertion != "parallel":
            self.fail("insertion", self.insertion, "'parallel' with form='prefix', which reads the queries")
        act = self.non_linearity or "softmax"
        object.__setattr__(self, "non_linearity", act)
        self.require_one_of("non_linearity", ("softmax", "relu"))
        if act == "relu" and self.composition == "gated":
            self.fail(
                "composition",
                "gated",
                "'add' or 'scaled' with non_linearity='relu': lambda is the prefix's share of a softmax",
            )
        if self.s == "channel":
            self.fail("s", self.s, "a number or 'learned' with form='prefix'")
        if self.bias or self.norm_before:
            name = "bias" if self.bias else "norm_before"
            self.fail(name, True, "False with form='prefix', which has no projections of its own")
        object.__setattr__(self, "bias", False)
        if self.init is None:
            object.__setattr__(self, "init", "normal" if self.composition == "gated" else "identity")
        if self.init == "identity" and self.composition == "gated":
            self.fail("init", self.init, "'normal' with composition='gated': the prefix takes its share from the start")

    def _check_projections(self) -> None:
        if self.composition == "gated":
            self.fail(
                "composition",
                "gated",
                f"'add' or 'scaled' with form={self.form!r}: only a prefix has a softmax whose share lambda is",
            )
        if self.non_linearity is None:
            object.__setattr__(self, "non_linearity", "identity" if self.form == "low_rank" else "relu")
        require_activation(self, "non_linearity")
        act = self.non_linearity
        if (act == "identity") != (self.form == "low_rank"):
            other = "low_rank" if self.form == "bottleneck" else "bottleneck"
            self.fail(
                "non_linearity", act, f"none with 'low_rank', one with 'bottleneck'; form is {self.form!r}", other
            )
        if self.bias is None:
            object.__setattr__(self, "bias", self.form == "bottleneck")
        self.require_one_of("bias", (True, False))
        if self.init is None:
            object.__setattr__(self, "init", "identity")

    @property
    def scale(self) -> float | str:
        """s, which is 1 where nothing scales."""
        return 1.0 if self.s is None else self.s

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears among the modified representations, as roles."""
        found: list[str] = []
        for word in (w for w in self.modified if w in LINEARS):
            both = word.startswith("ffn") or set(self.attention) == {"self", "cross"}
            found += [word] if both else [f"{self.attention[0]}_{word}"]
        return tuple(found)

    def updown(self, site: Site) -> UpDown:
        """Return the form of the delta at ``site``."""
        return UpDown(
            self.r,
            str(self.non_linearity),
            bias=bool(self.bias),
            dropout=self.dropout,
            scale=self.scale,
            init=str(self.init),
            norm_before=self.norm_before,
        )

    def prefix(self) -> PrefixConfig:
        """Return the prefix that ``form="prefix"`` stands for, without its scale."""
        composition = "add" if self.composition == "scaled" else self.composition
        return PrefixConfig(
            self.r,
            "flat",
            attention=(self.attention,) if isinstance(self.attention, str) else self.attention,
            form=_PREFIX_FORMS[(str(self.non_linearity), composition)],
            dropout=self.dropout,
            layers=self.layers,
            stack=self.stack,
        )
