"""From one text to the rows that a task's head reads, and from its logits to the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.columns import Columns
from ..multitask.heads import Classification, MultiLabel, Regression, Span, TokenClassification

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..multitask.task import Task

__all__ = ["ANSWERED", "answer_of", "columns_of"]

#: The heads whose answers are read here.
ANSWERED = (Classification, MultiLabel, Regression, TokenClassification, Span)


def columns_of(task: Task, text: str, pair: str | None) -> Columns:
    """One text as a data set without labels; token classification reads the words between its blanks."""
    texts: list[Any] = [text]
    labels: list[np.ndarray] | None = None
    if isinstance(task.head, TokenClassification):
        # Each word's number in place of its label: so the row says which token is a word's first piece.
        texts = [text.split()]
        labels = [np.arange(len(texts[0]), dtype=np.float32)]
    elif isinstance(task.head, Span):
        labels = [np.array([-1, 0], np.float32)]  # no answer is known
    return Columns(f"task {task.name!r}", texts, None if pair is None else [pair], labels)


def answer_of(
    task: Task,
    logits: np.ndarray,
    labels: np.ndarray,
    text: str,
    pair: str | None,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Any, float | None]:
    """The answer to one text, and its probability where there is one.

    Args:
        task: Whose head gave the logits.
        logits: A row, or a row for each window of a long context.
        labels: What the collator made of ``columns_of`` in the same rows.
        text: The text, or the question.
        pair: The second text, or the context.
        tokenizer: Says which characters a token stands for.
    """
    head = task.head
    if isinstance(head, Span):
        (span,), _ = head.decode(logits, labels)
        return _cut_out(pair or "", span, tokenizer), None
    if isinstance(head, TokenClassification):
        (classes,), read = head.decode(logits, labels)
        assert read is not None  # decode gives back the labels that it was given
        words = text.split()
        return [(words[word], _name(task, int(index))) for word, index in zip(read[0], classes, strict=True)], None
    predictions, _ = head.decode(logits, None)
    if isinstance(head, Classification):
        odds = np.exp(logits[0, : head.num_labels] - logits[0, : head.num_labels].max())
        return _name(task, int(predictions[0])), float((odds / odds.sum())[predictions[0]])
    if isinstance(head, MultiLabel):
        return [_name(task, int(index)) for index in np.flatnonzero(predictions[0])], None
    return float(np.ravel(predictions)[0]), None


def _name(task: Task, index: int) -> Any:
    return task.label_names[index] if task.label_names else index


def _cut_out(context: str, span: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    """The characters of a context from one of its tokens to another; none before its beginning."""
    first, last = map(int, span)
    if first < 0:
        return ""
    options: dict[str, Any] = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    offsets = tokenizer(context, **options)["offset_mapping"]
    return context[offsets[first][0] : offsets[last][1]].strip()
