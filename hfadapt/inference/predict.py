"""Predictions with a saved adapter: texts of several tasks in one batch, one forward."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data import MultiTaskCollator
from ..data.tokenizer import load_tokenizer
from ..errors import DataError, did_you_mean
from ..errors.names import names_of
from ..multitask.heads import IGNORE
from .answers import ANSWERED, answer_of, columns_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..multitask.model import MultiTaskModel
    from ..multitask.task import Task

__all__ = ["Prediction", "Predictor", "takes_pairs", "to_dict"]


@dataclass(frozen=True)
class Prediction:
    """The answer for one text.

    Args:
        task: Whose head answered.
        text: As given; the question of a span task.
        text_pair: The second text of a pair; the context of a span task.
        label: Name or number of the class, list of them for several labels, the value of a regression, a
            ``(word, label)`` a word for token classification, the answer's text for a span (empty: no answer).
        score: Probability of the class; ``None`` where there is none.
    """

    task: str
    text: str
    text_pair: str | None
    label: Any
    score: float | None = None


class Predictor:
    """Predicts texts with a ``MultiTaskModel``.

    Args:
        model: The model; it is put into evaluation mode.
        tokenizer: Of its base.
    """

    def __init__(self, model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.tasks: tuple[Task, ...] = model.tasks
        self._collator = MultiTaskCollator([task.head.label_place for task in self.tasks], tokenizer)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Predictor:
        """Load an adapter folder onto its base."""
        from ..multitask.model import MultiTaskModel

        model = MultiTaskModel.from_pretrained(folder)
        has_tokenizer = (Path(folder) / "tokenizer_config.json").is_file()
        return cls(model, load_tokenizer(folder if has_tokenizer else model.base.config._name_or_path))

    def predict(
        self,
        texts: str | Sequence[str],
        tasks: str | Sequence[str],
        pairs: str | Sequence[str | None] | None = None,
        *,
        batch_size: int = 64,
    ) -> list[Prediction]:
        """One prediction a text, in order.

        Args:
            texts: N texts; a string is one text.
            tasks: N task names; rows of different tasks share a forward. A string is one name.
            pairs: N second texts, for tasks on pairs; ``None`` where the task reads one text.
            batch_size: Rows a forward.

        Raises:
            DataError: an unknown task, lists of different lengths, a pair task without pairs, or a task whose answer
                only its model can read (``OwnHead``).
        """
        texts, tasks, pairs = names_of(texts), names_of(tasks), (pairs,) if isinstance(pairs, str) else pairs
        if len(texts) != len(tasks) or (pairs is not None and len(pairs) != len(texts)):
            got = f"{len(texts)} texts, {len(tasks)} tasks, {len(pairs) if pairs is not None else 'no'} pairs"
            raise DataError("one task, and for pairs one second text, for each text", got=got)
        names = [task.name for task in self.tasks]
        indices = [self._task(name, names) for name in tasks]
        given = list(zip(texts, [None] * len(texts) if pairs is None else pairs, indices, strict=True))
        # A long context of a span task is read in windows, each a row of its own.
        tables = [self._rows(*one) for one in given]
        rows = [row for table in tables for row in table]
        outputs = (out for start in range(0, len(rows), batch_size) for out in self._forward(rows[start:][:batch_size]))
        found: list[Prediction] = []
        for (text, pair, index), table in zip(given, tables, strict=True):
            task = self.tasks[index]
            logits, labels = map(_padded, zip(*itertools.islice(outputs, len(table)), strict=True))
            label, score = answer_of(task, logits, labels, text, pair, self.tokenizer)
            found.append(Prediction(task.name, text, pair, label, score))
        return found

    def predict_all(
        self, text: str, tasks: str | Sequence[str] | None = None, pair: str | None = None
    ) -> list[Prediction]:
        """The answers of several tasks (all by default) for one text, in one forward."""
        chosen = names_of(tasks or [task.name for task in self.tasks])
        return self.predict([text] * len(chosen), chosen, None if pair is None else [pair] * len(chosen))

    def _task(self, name: str, names: list[str]) -> int:
        if name not in names:
            raise DataError(f"no task {name!r}", allowed=", ".join(names), try_=did_you_mean(name, names))
        return names.index(name)

    def _rows(self, text: str, pair: str | None, index: int) -> list[dict[str, Any]]:
        from ..data.tokens import tokenize

        task = self.tasks[index]
        where = f"task {task.name!r}"
        if not isinstance(task.head, ANSWERED):
            raise DataError("predict cannot read its answer", where=where, got=f"head {task.head.kind!r}")
        if takes_pairs(task) and pair is None:
            raise DataError("the task needs a second text", where=where, try_="--pair TEXT")
        if pair is not None and task.head.label_place == "token":
            raise DataError("the task reads one text", where=where, got="two", try_="leave out the second")
        table = tokenize(task, columns_of(task, text, pair), self.tokenizer)
        return [{**table.row(row), "task_ids": index} for row in range(len(table))]

    @torch.inference_mode()
    def _forward(self, rows: list[dict[str, Any]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Logits and labels of each row."""
        batch = dict(self._collator(rows))
        labels = batch.pop("labels").numpy()
        device = next(self.model.parameters()).device
        logits = self.model(**{key: value.to(device) for key, value in batch.items()}).logits.float().cpu().numpy()
        return zip(logits, labels, strict=True)


def takes_pairs(task: Task) -> bool:
    """Whether a row of this task is two texts."""
    return task.pair == "separate" or task.head.kind == "span" or "text_pair" in task.columns


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several batches as one array."""
    full = np.full((len(rows), max(map(len, rows))), IGNORE, np.float32)
    for row, values in zip(full, rows, strict=True):
        row[: len(values)] = values
    return full


def to_dict(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON, empty fields left out."""
    return {key: value for key, value in dataclasses.asdict(prediction).items() if value is not None}
