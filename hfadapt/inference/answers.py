"""From one text to the rows that a task's head reads, and from its logits to the answer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.columns import Columns
from ..data.tokenizer import sole_use
from ..multitask.heads import Classification, Head, MultiLabel, OwnHead, Regression, Span, TokenClassification
from ..runtime.attachment import find_attachment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..multitask.task import Task

__all__ = ["ANSWERED", "Answer", "answer_of", "columns_of", "readable"]

#: The heads whose answers are read here.
ANSWERED = (Classification, MultiLabel, Regression, TokenClassification, Span)


@dataclass(frozen=True)
class Answer:
    """What a head says of one text; see ``Prediction``."""

    label: Any
    score: float | None = None
    scores: dict[str, float] | None = None
    span: tuple[int, int] | None = None


def readable(task: Task, model: Any) -> Task | None:
    """Return the task with a head that says how its answer is read, or None where none does.

    The base's own head is read as the head of ours that computes the same.

    Args:
        task: Of the model.
        model: A ``MultiTaskModel``.
    """
    if isinstance(task.head, ANSWERED):
        return task
    base = getattr(model, "base", None)
    if base is None or not isinstance(task.head, OwnHead):
        return None
    kind, state = type(base).__name__, find_attachment(base)
    adapter = getattr(model, "routes", {}).get(task.name, task.name)
    count = int(getattr(base.config, "num_labels", 0))
    if state is not None:
        count = state.label_counts.get(adapter, count)
    head: Head
    if kind.endswith("ForTokenClassification"):
        head = TokenClassification(count)
    elif not kind.endswith("ForSequenceClassification"):
        return None
    elif count == 1 or task.head.labels == "numbers":
        head = Regression()
    else:
        several = getattr(base.config, "problem_type", None) == "multi_label_classification"
        head = MultiLabel(count) if several else Classification(count)
    names = None if isinstance(head, Regression) else task.label_names or _names_of(base.config, count)
    return dataclasses.replace(task, head=head, label_names=names, metrics=())


def _names_of(config: Any, count: int) -> tuple[str, ...] | None:
    """The names of classes in a base's config, where somebody gave them names."""
    table = getattr(config, "id2label", None) or {}
    names = tuple(str(table[index]) for index in sorted(table))
    return names if len(names) == count and any(name != f"LABEL_{i}" for i, name in enumerate(names)) else None


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
) -> Answer:
    """The answer to one text.

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
        place = _characters(pair or "", span, tokenizer)
        return Answer("" if place is None else (pair or "")[slice(*place)], span=place)
    if isinstance(head, TokenClassification):
        (classes,), read = head.decode(logits, labels)
        assert read is not None  # decode gives back the labels that it was given
        words = text.split()
        return Answer([(words[word], _name(task, int(index))) for word, index in zip(read[0], classes, strict=True)])
    predictions, _ = head.decode(logits, None)
    if isinstance(head, Classification):
        odds = np.exp(logits[0, : head.num_labels] - logits[0, : head.num_labels].max())
        odds = odds / odds.sum()
        return Answer(_name(task, int(predictions[0])), float(odds[predictions[0]]), _by_name(task, odds))
    if isinstance(head, MultiLabel):
        odds = 1 / (1 + np.exp(-logits[0, : head.num_labels]))
        return Answer([_name(task, int(index)) for index in np.flatnonzero(predictions[0])], None, _by_name(task, odds))
    return Answer(float(np.ravel(predictions)[0]))


def _by_name(task: Task, odds: np.ndarray) -> dict[str, float]:
    return {str(_name(task, index)): float(value) for index, value in enumerate(odds)}


def _name(task: Task, index: int) -> Any:
    return task.label_names[index] if task.label_names else index


def _characters(context: str, span: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int] | None:
    """The characters of a context from one of its tokens to another, without blanks around; None for no answer."""
    first, last = map(int, span)
    if first < 0:
        return None
    options: dict[str, Any] = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    with sole_use(tokenizer):
        offsets = tokenizer(context, **options)["offset_mapping"]
    start, end = offsets[first][0], offsets[last][1]
    cut = context[start:end]
    start += len(cut) - len(cut.lstrip())
    return start, start + len(cut.strip())
