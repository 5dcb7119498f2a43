"""Predictions of a model with several tasks: texts of all of them in one batch, one forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data import MultiTaskCollator
from ..data.tokenizer import load_tokenizer
from ..errors import DataError, did_you_mean
from ..errors.limits import require_number
from ..multitask.heads import IGNORE
from .answers import answer_of, columns_of, readable
from .given import listed, require_text
from .proof import Outputs
from .refused import not_finite
from .writing import prompt_of, write, writes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..multitask.model import MultiTaskModel
    from ..multitask.task import Task

__all__ = ["Prediction", "Predictor", "Request", "takes_pairs", "to_dict"]

Run = Callable[[Sequence[dict[str, Any]]], Outputs]
"""Runs tokenised rows in one batch."""

#: A text longer than this is a mistake: no model reads a tenth of it.
MAX_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Prediction:
    """The answer for one text.

    Args:
        task: Whose head answered.
        text: As given; the question of a span task.
        text_pair: The second text of a pair; the context of a span task.
        label: Name or number of the class, list of them for several labels, the value of a regression, a
            ``(word, label)`` a word for token classification, the answer's text for a span (empty: no answer), what
            the base wrote where it writes.
        score: Probability of the class; ``None`` where there is none.
        scores: Probability of every class, by name or number; ``None`` where there are none.
        span: First character of a span in ``text_pair`` and the one behind its last; ``None`` for no answer.
    """

    task: str
    text: str
    text_pair: str | None
    label: Any
    score: float | None = None
    scores: dict[str, float] | None = None
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Request:
    """One text to answer.

    Args:
        task: As the model has it.
        reader: The same with a head that says how its answer is read; None where the base writes it.
        text: As given.
        pair: The second text.
        rows: Tokenised; one for each window of a long context. ``task_ids`` of a row is the task's place.
    """

    task: Task
    reader: Task | None
    text: str
    pair: str | None
    rows: list[dict[str, Any]]


class Predictor:
    """Predicts texts with a ``MultiTaskModel``.

    Args:
        model: The model; it is put into evaluation mode.
        tokenizer: Of its base.
        max_characters: The longest text that is read at all; what fits no model is cut by the tokenizer.
        max_new_tokens: How many tokens a base that writes may write.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_characters: int = MAX_CHARACTERS,
        max_new_tokens: int = 64,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_characters = max_characters
        self.max_new_tokens = max_new_tokens
        config = getattr(getattr(model, "base", None), "config", None)
        positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        self._limit = min(int(tokenizer.model_max_length), int(positions or 1 << 30))
        self._runs: tuple[Run, Run] = (self._forward, self._write)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the model."""
        return self.model.tasks

    @classmethod
    def from_folder(cls, folder: str | Path, *, base: Any = None) -> Predictor:
        """Load an adapter folder onto its base.

        Args:
            folder: That ``MultiTaskModel.save_pretrained`` or ``hfadapt train`` wrote.
            base: A model, or its name or folder, where the recorded one cannot be found.
        """
        from ..multitask.model import MultiTaskModel

        model = MultiTaskModel.from_pretrained(folder, base=base)
        return cls(model, tokenizer_of(folder, model))

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
            DataError: an unknown task, lists of different lengths, what is no text, a text that is too long, a pair
                task without pairs, or a task whose answer only its model can read.
        """
        require_number("batch_size", batch_size, where="Predictor", whole=True, least=1, error=DataError)
        requests = self._requests(texts, tasks, pairs)

        def batches(rows: list[dict[str, Any]], text: bool) -> Iterator[tuple[Run, list[int]]]:
            for start in range(0, len(rows), batch_size):
                yield self._runs[text], list(range(start, min(start + batch_size, len(rows))))

        return self._answers(requests, self._outputs(requests, batches))

    def predict_all(
        self, text: str, tasks: str | Sequence[str] | None = None, pair: str | None = None
    ) -> list[Prediction]:
        """The answers of several tasks (all by default) for one text, in one forward.

        Args:
            text: The text.
            tasks: Names, each of any task.
            pair: A second text. Tasks that answer word by word read the first alone.

        Raises:
            DataError: as of ``predict``, of a task on pairs without one too.
        """
        return self.predict(*self._for_all(text, tasks, pair))

    def _for_all(
        self, text: str, tasks: str | Sequence[str] | None, pair: str | None
    ) -> tuple[list[str], Sequence[str], list[str | None] | None]:
        """Return texts, tasks and second texts of one text for several tasks."""
        chosen = [task.name for task in self.tasks] if tasks is None else listed(tasks, "tasks")
        alone = {task.name for task in self.tasks if self._reads_one(task)}
        pairs = None if pair is None else [None if name in alone else pair for name in chosen]
        return [text] * len(chosen), chosen, pairs

    def _reads_one(self, task: Task) -> bool:
        """Say whether a task answers word by word, and so for one text."""
        reader = None if writes(task, self.model) else readable(task, self.model)
        return reader is not None and reader.head.label_place == "token"

    def fitting(self, pairs: bool) -> list[str]:
        """Names of the tasks that read two texts (``pairs``) or one."""
        return [task.name for task in self.tasks if takes_pairs(task) == pairs]

    def _requests(
        self, texts: str | Sequence[str], tasks: str | Sequence[str], pairs: str | Sequence[str | None] | None
    ) -> list[Request]:
        """Return checked and tokenised texts; see `predict`."""
        texts, tasks = listed(texts, "texts"), listed(tasks, "tasks")
        pairs = None if pairs is None else listed(pairs, "pairs")
        if len(texts) != len(tasks) or (pairs is not None and len(pairs) != len(texts)):
            got = f"{len(texts)} texts, {len(tasks)} tasks, {len(pairs) if pairs is not None else 'no'} pairs"
            raise DataError(
                "one task, and for pairs one second text, for each text",
                where="Predictor",
                got=got,
                allowed="lists of one length",
                try_="[task] * len(texts)",
            )
        known = self.tasks
        places = {task.name: place for place, task in enumerate(known)}
        seconds = [None] * len(texts) if pairs is None else pairs
        found = []
        for number, (text, name, pair) in enumerate(zip(texts, tasks, seconds, strict=True)):
            if not isinstance(name, str) or name not in places:
                near = did_you_mean(str(name), places) or "one of these"
                raise DataError(
                    f"no task {name!r}",
                    where="Predictor",
                    got=repr(name),
                    allowed=", ".join(places),
                    try_=near,
                )
            for one in (text,) if pair is None else (text, pair):
                require_text(one, number, self.max_characters)
            found.append(self._request(known[places[name]], places[name], text, pair))
        return found

    def _request(self, task: Task, place: int, text: str, pair: str | None) -> Request:
        from ..data.tokens import tokenize

        where = f"task {task.name!r}"
        if writes(task, self.model):
            decodes = not self.model.base.config.is_encoder_decoder
            room = self._limit - (self.max_new_tokens if decodes else 0)
            row = prompt_of(task, self.tokenizer, text, pair, room, decodes)
            return Request(task, None, text, pair, [{**row, "task_ids": place}])
        reader = readable(task, self.model)
        if reader is None:
            raise DataError(
                "predict cannot read its answer",
                where=where,
                got=f"head {task.head.kind!r}",
                allowed="heads that name their answer",
                try_="model(**inputs).logits",
            )
        if takes_pairs(task) and pair is None:
            raise DataError(
                "the task needs a second text",
                where=where,
                got="one text",
                allowed="a text and its pair",
                try_="--pair TEXT",
            )
        if pair is not None and self._reads_one(task):
            raise DataError(
                "the task reads one text",
                where=where,
                got="two",
                allowed="one text",
                try_="leave out the second",
            )
        table = tokenize(reader, columns_of(reader, text, pair), self.tokenizer)
        rows = [{**table.row(row), "task_ids": place} for row in range(len(table))]
        if any(len(row["input_ids"]) == 0 for row in rows):
            raise DataError(
                "the text has no tokens",
                where=where,
                got=repr(text[:80]),
                allowed="a word or more",
                try_="leave empty texts out",
            )
        return Request(task, reader, text, pair, rows)

    def _outputs(
        self,
        requests: list[Request],
        batches: Callable[[list[dict[str, Any]], bool], Iterator[tuple[Run, list[int]]]],
    ) -> Outputs:
        """Return what the model gives for each row of the requests, in order.

        Args:
            requests: Texts of any tasks.
            batches: Splits rows into batches, and says what runs each; with whether the rows are answered by text.
        """
        rows = [row for request in requests for row in request.rows]
        writing = [request.reader is None for request in requests for _ in request.rows]
        found: Outputs = [(np.zeros(0), np.zeros(0))] * len(rows)
        for text in (False, True):
            numbers = [number for number, one in enumerate(writing) if one is text]
            chosen = [rows[number] for number in numbers]
            for run, batch in batches(chosen, text):
                for place, output in zip(batch, run([chosen[place] for place in batch]), strict=True):
                    found[numbers[place]] = output
        return found

    def _answers(self, requests: list[Request], outputs: Outputs) -> list[Prediction]:
        found, start = [], 0
        for request in requests:
            own = outputs[start:][: len(request.rows)]
            start += len(own)
            name, text, pair = request.task.name, request.text, request.pair
            if not all(np.isfinite(logits).all() for logits, _ in own):
                raise not_finite(name)
            if request.reader is None:
                written = self.tokenizer.decode(own[0][0].tolist(), skip_special_tokens=True)
                found.append(Prediction(name, text, pair, written))
                continue
            logits, labels = map(_padded, zip(*own, strict=True))
            answer = answer_of(request.reader, logits, labels, text, pair, self.tokenizer)
            found.append(Prediction(name, text, pair, answer.label, answer.score, answer.scores, answer.span))
        return found

    def _collator(self) -> MultiTaskCollator:
        heads = [(readable(task, self.model) or task).head for task in self.tasks]
        return MultiTaskCollator([head.label_place for head in heads], self.tokenizer)

    @torch.inference_mode()
    def _forward(self, rows: Sequence[dict[str, Any]]) -> Outputs:
        """Logits and labels of each row."""
        batch = dict(self._collator()(rows))
        labels = batch.pop("labels").numpy()
        ids = getattr(self.model, "ids", None)
        if ids is not None:  # which have gaps where tasks were removed
            batch["task_ids"] = torch.tensor(ids)[batch["task_ids"]]
        device = next(self.model.parameters()).device
        logits = self.model(**{key: value.to(device) for key, value in batch.items()}).logits.float().cpu().numpy()
        return list(zip(logits, labels, strict=True))

    def _write(self, rows: Sequence[dict[str, Any]], probe: bool = False) -> Outputs:
        """What the base writes behind each row."""
        adapters = [self._adapter_of(self.model.tasks[row["task_ids"]]) for row in rows]
        width = self._width(max(len(row["input_ids"]) for row in rows))
        return write(self.model, self.tokenizer, rows, adapters, width, self.max_new_tokens, probe=probe)

    def _adapter_of(self, task: Task) -> str:
        """The adapter or composition of a task's rows."""
        return str(self.model.routes.get(task.name, task.name))

    def _width(self, longest: int) -> int:
        return longest


def tokenizer_of(folder: str | Path, model: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer that a folder holds, or else that of its base."""
    has_tokenizer = (Path(folder) / "tokenizer_config.json").is_file()
    return load_tokenizer(folder if has_tokenizer else model.base.config._name_or_path)


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
