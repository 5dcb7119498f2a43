"""Predictions with a saved adapter: texts of several tasks in one batch, one forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hfadapt.errors import DataError, did_you_mean, problem
from hfadapt.heads import Classification, MultiLabel, Regression

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hfadapt.model import MultiTaskModel
    from hfadapt.tasks import Task

__all__ = ["Prediction", "Predictor"]


@dataclass(frozen=True)
class Prediction:
    """The answer for one text.

    Args:
        task: Whose head answered.
        text: As given.
        text_pair: The second text of a pair.
        label: Name or number of the class, list of them for several labels, or the value of a regression.
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

    @classmethod
    def from_folder(cls, folder: str | Path) -> Predictor:
        """Load an adapter folder onto its base."""
        from transformers import AutoTokenizer

        from hfadapt import MultiTaskModel

        model = MultiTaskModel.from_pretrained(folder)
        has_tokenizer = (Path(folder) / "tokenizer_config.json").is_file()
        return cls(model, AutoTokenizer.from_pretrained(folder if has_tokenizer else model.base.config._name_or_path))

    def predict(
        self, texts: Sequence[str], tasks: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 64
    ) -> list[Prediction]:
        """One prediction a text, in order.

        Args:
            texts: N texts.
            tasks: N task names; rows of different tasks share a forward.
            pairs: N second texts, for tasks on pairs.
            batch_size: Rows a forward.

        Raises:
            DataError: an unknown task, lists of different lengths, a pair task without pairs, or a task whose answer
                is no single value a text.
        """
        if len(texts) != len(tasks) or (pairs is not None and len(pairs) != len(texts)):
            got = f"{len(texts)} texts, {len(tasks)} tasks, {len(pairs) if pairs is not None else 'no'} pairs"
            raise DataError(problem("one task, and for pairs one second text, for each text", got=got))
        from hfadapt.data import MultiTaskCollator

        names = [task.name for task in self.tasks]
        collator = MultiTaskCollator([task.head.kind for task in self.tasks], label_form="matrix")
        collator.tokenizer = self.tokenizer
        found: list[Prediction] = []
        for start in range(0, len(texts), batch_size):
            chunk = slice(start, start + batch_size)
            some_pairs = [None] * len(texts[chunk]) if pairs is None else pairs[chunk]
            rows = [
                self._row(self._task(name, names), text, pair)
                for text, name, pair in zip(texts[chunk], tasks[chunk], some_pairs, strict=True)
            ]
            logits = self._forward(dict(collator(rows)))
            for logit, text, name, pair in zip(logits, texts[chunk], tasks[chunk], some_pairs, strict=True):
                label, score = _answer(self.tasks[names.index(name)], logit)
                found.append(Prediction(name, text, pair, label, score))
        return found

    def predict_all(self, text: str, tasks: Sequence[str] | None = None, pair: str | None = None) -> list[Prediction]:
        """The answers of several tasks (all by default) for one text, in one forward."""
        chosen = list(tasks or (task.name for task in self.tasks))
        return self.predict([text] * len(chosen), chosen, None if pair is None else [pair] * len(chosen))

    def _task(self, name: str, names: list[str]) -> int:
        if name not in names:
            raise DataError(problem(f"no task {name!r}", allowed=", ".join(names), try_=did_you_mean(name, names)))
        return names.index(name)

    def _row(self, index: int, text: str, pair: str | None) -> dict[str, Any]:
        from hfadapt.data.columns import Columns
        from hfadapt.data.tokens import tokenize

        task = self.tasks[index]
        if not isinstance(task.head, (Classification, MultiLabel, Regression)):
            raise DataError(
                problem("its answer is no single value a text", where=f"task {task.name!r}", got=task.head.kind)
            )
        if task.pair == "separate" and pair is None:
            raise DataError(problem("the task needs a second text", where=f"task {task.name!r}", try_="--pair TEXT"))
        columns = Columns(f"task {task.name!r}", [text], None if pair is None else [pair], None)
        return {**tokenize(task, columns, self.tokenizer).row(0), "task_ids": index}

    @torch.inference_mode()
    def _forward(self, batch: dict[str, Any]) -> np.ndarray:
        batch.pop("labels", None)
        device = next(self.model.parameters()).device
        return self.model(**{key: value.to(device) for key, value in batch.items()}).logits.float().cpu().numpy()


def _answer(task: Task, logits: np.ndarray) -> tuple[Any, float | None]:
    """Label and probability out of one row of logits."""
    head = task.head
    predictions, _ = head.decode(logits[None], None)
    if isinstance(head, Classification):
        odds = np.exp(logits[: head.num_labels] - logits[: head.num_labels].max())
        return _name(task, int(predictions[0])), float((odds / odds.sum())[predictions[0]])
    if isinstance(head, MultiLabel):
        return [_name(task, int(index)) for index in np.flatnonzero(predictions[0])], None
    return float(np.ravel(predictions)[0]), None


def _name(task: Task, index: int) -> Any:
    return task.label_names[index] if task.label_names else index


def to_dict(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON, empty fields left out."""
    return {key: value for key, value in dataclasses.asdict(prediction).items() if value is not None}
