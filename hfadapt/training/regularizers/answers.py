"""What a model's output says about each row, so that two passes can be compared: which logits, of which kind, where.

Kinds follow the loss that the model is trained with. Positions that carry no answer are left out: tokens without a
label (padded ones where there are no labels), and for spans padded tokens as places of a start or an end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...multitask.heads import IGNORE, Classification, Head, MultiLabel, OwnHead, Regression, Span, TokenClassification
from ...multitask.heads.base import fit_labels
from .divergences import DIVERGENCES, Kind

__all__ = ["Answer", "Answers", "answers_of", "divergence"]


@dataclass(frozen=True)
class Answer:
    """The answers of one task.

    Args:
        kind: What the logits say.
        logits: [N, C], a row an answer; float32 at least.
        share: Of the batch's mean: the task's share of the rows, times its loss weight.
    """

    kind: Kind
    logits: Tensor
    share: float = 1.0

    def detach(self) -> Answer:
        """The same without a graph."""
        return Answer(self.kind, self.logits.detach(), self.share)


Answers = tuple[Answer, ...]


def divergence(left: Answers, right: Answers, *, symmetric: bool = True) -> Tensor:
    """Return the mean over answers of how far two passes lie apart, tasks weighted by their share.

    Args:
        left: Of one pass; P where the divergence has a direction.
        right: Of another pass over the same rows.
        symmetric: Symmetric KL, or else ``KL(left || right)``; numbers are compared by their squared difference.
    """
    total = left[0].logits.new_zeros(())
    for one, other in zip(left, right, strict=True):
        each = DIVERGENCES[one.kind][0 if symmetric else 1](one.logits, other.logits)
        total = total + one.share * each.sum() / max(1, len(each))
    return total


def answers_of(module: nn.Module, output: Any, inputs: Mapping[str, Any]) -> Answers:
    """Return what a pass answered.

    Args:
        module: The model without wrappers; a stock one, adapted or not, or a ``MultiTaskModel``.
        output: What it returned.
        inputs: What it was called with.

    Raises:
        ConfigError: the output holds no logits.
    """
    if hasattr(module, "tasks") and hasattr(output, "task_ids"):
        return _of_tasks(module, output, inputs)
    return (_of_stock(module, output, inputs),)


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _of_stock(module: nn.Module, output: Any, inputs: Mapping[str, Any]) -> Answer:
    start, end = _get(output, "start_logits"), _get(output, "end_logits")
    if start is not None and end is not None:
        return Answer("classes", _places(torch.cat([start, end]), inputs))
    logits = _get(output, "logits")
    if not isinstance(logits, Tensor):
        raise ConfigError(
            "the model gives no logits to compare",
            where=type(module).__name__,
            got=type(output).__name__,
            allowed="models that return logits, or start_logits and end_logits",
            try_="AutoModelFor... with a head; or a regularizer that compares no answers: freelb, pgd, sam",
        )
    logits = _precise(logits)
    if logits.dim() <= 2:
        kind = _kind_of_texts(module, logits)
        return Answer(kind, logits[:, None] if logits.dim() == 1 else logits)
    return Answer("classes", _tokens(logits, inputs, shifted=_is_causal(module)))


def _get(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _kind_of_texts(module: nn.Module, logits: Tensor) -> Kind:
    config = getattr(module, "config", None)
    told = getattr(config, "problem_type", None)
    if told == "multi_label_classification":
        return "labels"
    one = logits.dim() == 1 or logits.shape[1] == 1
    return "numbers" if told == "regression" or (one and told is None) else "classes"


def _is_causal(module: nn.Module) -> bool:
    # transformers names the classes that predict the next token so
    return type(module).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def _tokens(logits: Tensor, inputs: Mapping[str, Any], shifted: bool) -> Tensor:
    """Return the logits of tokens that carry an answer, [N, C]."""
    labels = inputs.get("labels")
    valid = None
    if isinstance(labels, Tensor) and labels.dim() == 2:
        # Trainer hands the labels of a batch on as they are: those of text may be narrower than the tokens
        valid = fit_labels(labels, logits.shape[1]) != IGNORE
        if shifted:
            logits, valid = logits[:, :-1], valid[:, 1:]
    else:
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == logits.shape[:2]:
            valid = mask.bool()
    return logits.flatten(0, 1) if valid is None else logits[valid]


def _places(scores: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return the scores of places [N, T], N a multiple of the rows, without those that are padded."""
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] != scores.shape[1]:
        return _precise(scores)
    padded = ~mask.bool().repeat(scores.shape[0] // mask.shape[0], 1)
    return _precise(scores).masked_fill(padded, -torch.inf)


def _of_tasks(model: Any, output: Any, inputs: Mapping[str, Any]) -> Answers:
    ids = output.task_ids
    found = []
    for number, task in zip(model.ids, model.tasks, strict=True):
        rows = (ids == number).nonzero().squeeze(1)
        if not len(rows):
            continue
        mine = {k: v[rows] for k, v in inputs.items() if isinstance(v, Tensor) and v.dim() and len(v) == len(ids)}
        head = task.head
        if isinstance(head, OwnHead):
            kind, logits = _of_own_head(model, output.logits[rows], mine)
        else:
            kind, logits = _of_head(head, _precise(model.logits_of(output, task.name)), mine)
        found.append(Answer(kind, logits, task.loss_weight * len(rows) / len(ids)))
    return tuple(found)


def _of_head(head: Head, logits: Tensor, inputs: Mapping[str, Any]) -> tuple[Kind, Tensor]:
    """Return kind and logits of a head; a third party's head is compared as what its logits look like."""
    if isinstance(head, Regression):
        # measured in the unit that the head's own loss is measured in
        span = 1.0 if head.low is None or head.high is None else head.high - head.low
        return "numbers", logits / span
    if isinstance(head, MultiLabel):
        return "labels", logits
    if isinstance(head, Classification):
        return "classes", logits
    if isinstance(head, Span):
        return "classes", _places(logits.permute(2, 0, 1).flatten(0, 1), inputs)
    if isinstance(head, TokenClassification) or logits.dim() == 3:
        return "classes", _tokens(logits, inputs, shifted=False)
    return ("numbers" if logits.shape[1] == 1 else "classes"), logits


def _of_own_head(model: Any, flat: Tensor, inputs: Mapping[str, Any]) -> tuple[Kind, Tensor]:
    base, kind, flat = model.base, model._own_kind.labels, _precise(flat)
    if kind in ("classes", "numbers"):
        return kind, flat
    table: Callable[[], Any] = getattr(base, "get_output_embeddings", lambda: None)
    words = table()
    width = int(words.weight.shape[0]) if words is not None else int(base.config.num_labels)
    return "classes", _tokens(flat.unflatten(1, (-1, width)), inputs, shifted=_is_causal(base))
