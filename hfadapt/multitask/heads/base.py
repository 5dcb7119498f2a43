"""What every head is: a frozen config that checks labels, builds a module, computes a loss and decodes logits.

A head's labels travel as one float32 row of `label width` numbers, because rows of different tasks share a batch:
classification uses the first number, multi-label the first C, token labels one a token, spans two. ``-100`` marks a
number that carries no label, for regression ``NaN`` does.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ... import plugins
from ...errors import HFAdaptError, TaskError, did_you_mean
from ...errors.limits import require_number
from ...method.fields import KnownFields

__all__ = [
    "IGNORE",
    "POOLINGS",
    "Head",
    "HeadFeatures",
    "Pooling",
    "fit_labels",
    "head_from_dict",
    "heads",
    "masked_mean",
    "no_head",
]

IGNORE = -100
Pooling = Literal["auto", "cls", "mean", "last", "pooler"]
POOLINGS = ("auto", "cls", "mean", "last", "pooler")


@dataclass(frozen=True)
class HeadFeatures:
    """What a head reads: the base's output for the rows of the batch, those of other tasks among them.

    Args:
        hidden: Last hidden state, [B, T, D].
        mask: 1 for real tokens, [B, T]; ``None`` when nothing is padded.
        pooler: The base's own pooled output, [B, D], where it has one.
        pair_hidden: The same for the second text of each row, when texts are encoded separately.
        pair_mask: Its mask.
        pair_pooler: Its pooled output.
    """

    hidden: Tensor
    mask: Tensor | None = None
    pooler: Tensor | None = None
    pair_hidden: Tensor | None = None
    pair_mask: Tensor | None = None
    pair_pooler: Tensor | None = None
    _made: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Any, make: Callable[[HeadFeatures], Tensor]) -> Tensor:
        """Return ``make(self)``, computed for the first head that asks for ``key``; others read the same."""
        if key not in self._made:
            self._made[key] = make(self)
        return self._made[key]

    def select(self, rows: Tensor) -> HeadFeatures:
        """Return the features of some rows, given by number."""

        def pick(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.index_select(0, rows)

        return HeadFeatures(
            self.hidden.index_select(0, rows),
            pick(self.mask),
            pick(self.pooler),
            pick(self.pair_hidden),
            pick(self.pair_mask),
            pick(self.pair_pooler),
        )


@dataclass(frozen=True)
class Head(KnownFields, ABC):
    """Base of all heads.

    Args:
        pooling: How [B, T, D] becomes [B, D]: ``cls`` (first token), ``mean`` and ``last`` (over real tokens),
            ``pooler`` (the base's own pooler) or ``auto``: ``last`` for causal bases and encoder-decoders, else
            ``mean``.
        dropout: Probability before the last linear.
    """

    pooling: Pooling = field(default="auto", kw_only=True)
    dropout: float = field(default=0.1, kw_only=True)

    field_error: ClassVar[type[HFAdaptError]] = TaskError
    kind: ClassVar[str] = ""
    default_metrics: ClassVar[tuple[str, ...]] = ()
    #: Names of metrics that make sense for this head.
    allowed_metrics: ClassVar[tuple[str, ...]] = ()
    #: What labels are tied to: the ``row``, each ``token`` of it, or a ``position`` counted in tokens.
    label_place: ClassVar[str] = "row"
    #: Whether the head gives one row of logits a text (pairs may then be encoded separately).
    per_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise TaskError(
                "unknown pooling",
                where=type(self).__name__,
                got=repr(self.pooling),
                allowed=", ".join(POOLINGS),
                try_=did_you_mean(str(self.pooling), POOLINGS) or "pooling='auto'",
            )
        require_number("dropout", self.dropout, where=type(self).__name__, least=0, below=1, error=TaskError)

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Logits a text, or a token for heads that label tokens."""

    @abstractmethod
    def build(self, hidden_size: int, pooling: Pooling, pair: str) -> nn.Module | None:
        """Return the module that turns ``HeadFeatures`` into logits [B, C] or [B, T, C].

        Args:
            hidden_size: D, the width of the base's last hidden state.
            pooling: The pooling to use, never ``auto``.
            pair: ``joint``, or ``separate`` when each text of a pair is encoded alone.
        """

    @abstractmethod
    def check_labels(self, values: list[Any], where: str, names: tuple[str, ...] | None = None) -> list[np.ndarray]:
        """Return each row's labels as a float32 vector, or raise ``DataError`` naming the first bad row.

        Args:
            values: The label column, one Python value a row.
            where: Task and split, for the message.
            names: Label names; strings in ``values`` are looked up there.
        """

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the mean loss over the labelled items of the rows ``keep`` (all rows when ``None``); 0 for none.

        Args:
            logits: [B, C] or [B, T, C].
            labels: [B, label width], float32.
            keep: bool [B].
        """

    @abstractmethod
    def decode(self, logits: np.ndarray, labels: np.ndarray | None) -> tuple[Any, Any]:
        """Return predictions and references of the labelled rows (references ``None`` without labels).

        Args:
            logits: [N, W] with W at least this head's flattened width; the rest is padding.
            labels: [N, label width] or ``None``.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description that ``head_from_dict`` reads."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def masked_mean(values: Tensor, valid: Tensor, keep: Tensor | None) -> Tensor:
    """Mean of ``values`` where ``valid`` and the row is in ``keep``; 0 (with a gradient of 0) when nothing is left.

    Args:
        values: Loss of each item, [B, ...].
        valid: bool of the same shape.
        keep: bool [B] or ``None``.
    """
    if keep is not None:
        valid = valid & keep.reshape(-1, *([1] * (valid.dim() - 1)))
    total = torch.where(valid, values, torch.zeros_like(values)).sum()
    return total / valid.sum().clamp(min=1)


def wide(logits: Tensor) -> Tensor:
    """Return logits as losses and metrics take them: in float32, or in float64 where the model is in it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def fit_labels(labels: Tensor, width: int) -> Tensor:
    """Cut or pad the label matrix to ``width`` columns: other tasks' labels may be wider, or all of them narrower."""
    if labels.shape[1] >= width:
        return labels[:, :width]
    return nn.functional.pad(labels, (0, width - labels.shape[1]), value=IGNORE)


def heads() -> dict[str, type[Head]]:
    """Every kind of head: hfadapt's own, and those of plugins."""
    from . import HEADS

    return {**plugins.heads(), **HEADS}


def no_head(name: str, thing: object) -> str:
    """Say what a plugin ought to register in the place of ``thing``; "" for a class of heads of that kind."""
    from . import HEADS

    if name in HEADS:
        return f"a kind of its own: {name!r} is one of hfadapt's"
    fits = isinstance(thing, type) and issubclass(thing, Head) and thing.kind == name
    return "" if fits else f"a subclass of hfadapt.Head with kind = {name!r}"


def head_from_dict(description: Mapping[str, Any]) -> Head:
    """Rebuild a head from ``Head.to_dict``.

    Raises:
        TaskError: the kind or a field is unknown.
    """
    known = heads()
    fields = dict(description)
    kind = fields.pop("kind", None)
    if kind not in known:
        raise TaskError(
            "unknown head",
            where="head",
            got=repr(kind),
            allowed=", ".join(known),
            try_=did_you_mean(str(kind), known) or f"kind={next(iter(known))!r}",
        )
    return known[kind](**fields)
