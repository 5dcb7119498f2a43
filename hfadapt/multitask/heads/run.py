"""Runs the heads of a batch whose rows belong to different tasks.

Every head that the batch needs computes all rows, and each row takes its own: how a product rounds hangs on the number
of its rows, so that picking them first would let a row's bits depend on how many others share its task.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import TaskError
from ...routing.draws import draws_of_pass
from ...runtime.elsewhere import tensors_elsewhere
from .base import IGNORE, HeadFeatures, wide
from .own import flatten_logits

if TYPE_CHECKING:
    from ..task import Task

__all__ = ["run_heads"]


def run_heads(
    tasks: Sequence[Task],
    heads: nn.ModuleDict,
    features: HeadFeatures,
    ids: Tensor,
    present: tuple[int, ...] | None,
    labels: Tensor | None,
) -> tuple[Tensor | None, Tensor]:
    """Run the heads of the tasks present, or all of them with the rows of others masked out.

    Args:
        tasks: All tasks of the model.
        heads: Their heads, by task.
        features: What the heads read of the whole batch, ``[B, T, D]`` among it.
        ids: The task of each row, int64 ``[B]``.
        present: The tasks that have rows; None when all must take part.
        labels: The label matrix of the batch, or None.

    Returns:
        The weighted loss (None without labels), and logits ``[B, W]`` in float32 (float64 where the model is in it), W
        the width of the widest head; what a narrower one leaves is filled with ``IGNORE``.
    """
    size, tokens = features.hidden.shape[:2]
    width = max(t.head.num_outputs * (1 if t.head.per_text else tokens) for t in tasks)
    logits = torch.full((size, width), float(IGNORE), device=ids.device, dtype=wide(features.hidden).dtype)
    losses: list[Tensor] = []
    draws = draws_of_pass(heads.training, ids.device)
    for index in range(len(tasks)) if present is None else present:
        task = tasks[index]
        keep = None if present is not None and len(present) == 1 else ids == index
        with nullcontext() if draws is None else draws.at(f"head {task.name}"):
            own = _answer(heads[task.name], features, task.name)
        flat = wide(flatten_logits(own))
        flat = F.pad(flat, (0, width - flat.shape[1]), value=float(IGNORE))
        logits = flat if keep is None else torch.where(keep[:, None], flat, logits)
        if labels is not None:
            share = 1.0 if keep is None else keep.sum() / size
            if keep is None or present is None:
                loss = task.head.loss(own, labels, keep)
            else:
                rows = keep.nonzero().squeeze(1)
                loss = task.head.loss(own[rows], labels[rows])
            losses.append(task.loss_weight * share * loss)
    return (torch.stack(losses).sum() if losses else None), logits


def _answer(head: nn.Module, features: HeadFeatures, task: str) -> Tensor:
    """Call a head; one that stands on another device than the hidden states is named, where the call fails of it.

    Raises:
        TaskError: it does.
    """
    if torch.compiler.is_compiling():
        return head(features)
    try:
        return head(features)
    except RuntimeError as error:
        place = features.hidden.device
        for name, tensor in tensors_elsewhere(head.named_parameters(), place):
            raise TaskError(
                "the head stands on another device than the base",
                where=f"heads.{task}",
                got=f"{name} {list(tensor.shape)} on {tensor.device}",
                allowed=f"on {place}, where the hidden states are",
                try_=f"model.to({str(place)!r}), which moves base, adapters and heads together",
            ) from error
        raise
