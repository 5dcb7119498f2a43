"""``pipeline("hfadapt", model=folder)``: a stock pipeline over the tasks of a ``MultiTaskModel``."""

# Every pipeline takes its own rows in these methods; the base class declares them for a dict of tensors.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..data.tokenizer import check_tokenizer, load_tokenizer
from ..errors import ConfigError, DataError, did_you_mean
from ..errors.limits import require_number
from ..errors.names import names_of
from .predict import Prediction, Predictor, to_dict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..multitask.model import MultiTaskModel

__all__ = ["TASK", "TaskPipeline", "register"]

TASK = "hfadapt"
"""The name under which `transformers.pipeline` knows it."""

_KEYS = ("text", "text_pair", "task")

Call = tuple[str, str, str | None]
"""A text, the task that answers it, and its second text."""


class TaskPipeline(Pipeline):
    """Answers texts with the tasks of a ``MultiTaskModel``, rows of all of them in one batch.

    A text is a string or ``{"text": ..., "text_pair": ..., "task": ...}``, of which ``text`` alone must be there. One
    text gives one result, a list a list, and a data set of torch or a generator an iterator that reads as it goes. A
    result is the dict of a `Prediction`; where several tasks answer, the list of theirs.

    Args:
        model: ``pipeline`` loads it of a folder or a name on the hub.
        tokenizer: Or its name; by default the folder's, or else that of its base.
        tasks: Names of the tasks that answer a text which names none. By default every task that reads so many texts,
            one or two.
        max_new_tokens: How many tokens a base that writes may write.
        batch_size: Rows a forward; of a data set or generator as many texts are read at a time.
        options: Those of every pipeline, such as ``device``.

    Raises:
        ConfigError: the model is no ``MultiTaskModel``.
        DataError: no tokenizer can be loaded; when texts are answered, see `Predictor.predict`.
    """

    _load_tokenizer = None
    _load_processor = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    model: MultiTaskModel

    def __init__(
        self,
        model: MultiTaskModel,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        *,
        tasks: str | Iterable[str] | None = None,
        max_new_tokens: int = 64,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        from ..multitask.model import MultiTaskModel

        if not isinstance(model, MultiTaskModel):
            raise ConfigError(
                "the model has no tasks",
                where=f"pipeline({TASK!r})",
                got=type(model).__name__,
                allowed="a MultiTaskModel, or a folder that its save_pretrained or hfadapt train wrote",
                try_="pipeline('text-classification', ...) or another of transformers' own, which runs adapters too",
            )
        require_number(
            "max_new_tokens", max_new_tokens, where=f"pipeline({TASK!r})", whole=True, least=1, error=DataError
        )
        if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = load_tokenizer(tokenizer or str(model.base.config._name_or_path))
        check_tokenizer(tokenizer, f"pipeline({TASK!r})")
        self._predictor = Predictor(model, tokenizer, max_new_tokens=max_new_tokens)
        super().__init__(model, tokenizer, tasks=tasks, batch_size=64 if batch_size is None else batch_size, **options)  # pyright: ignore[reportArgumentType]

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Answer one text, a list of them, or what is iterated over; options are those of the constructor."""
        if options.get("num_workers"):
            raise ConfigError(
                "texts are read where the model runs",
                where=f"pipeline({TASK!r})",
                got=f"num_workers={options['num_workers']!r}",
                allowed="0",
                try_="hfadapt predict --input FILE --workers N, for whole files",
            )
        streams = isinstance(inputs, (str, Mapping, list, GeneratorType, Dataset))
        if not streams and isinstance(inputs, Iterable):
            inputs = list(inputs)
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **options)

    def _sanitize_parameters(self, tasks: str | Iterable[str] | None = None) -> tuple[dict[str, Any], ...]:
        if tasks is None:
            return {}, {}, {}
        names = names_of(tasks)
        if not names:
            raise DataError(
                "no task is named",
                where=f"pipeline({TASK!r})",
                got=f"tasks={tasks!r}",
                allowed=", ".join(task.name for task in self._predictor.tasks),
                try_="leave tasks out, for all of them",
            )
        return {"tasks": names}, {}, {}

    def preprocess(self, row: Any, tasks: tuple[str, ...] | None = None) -> list[Call]:
        """Say which tasks answer a text."""
        if not isinstance(row, Mapping):
            row = {"text": row}
        unknown = [key for key in row if key not in _KEYS]
        if unknown or "text" not in row:
            near = did_you_mean(str(unknown[0]), _KEYS) if unknown else ""
            raise DataError(
                f"unknown key {unknown[0]!r}" if unknown else "no text",
                where=f"pipeline({TASK!r})",
                got=", ".join(map(repr, row)) or "no keys",
                allowed="'text', with 'text_pair' and 'task' where wanted",
                try_=near or "{'text': row['sentence']}",
            )
        pair = row.get("text_pair")
        named = row.get("task")
        chosen = [named] if named is not None else tasks or self._predictor.fitting(pairs=pair is not None)
        if not chosen:
            raise DataError(
                "no task reads this",
                where=f"pipeline({TASK!r})",
                got="one text" if pair is None else "two texts",
                allowed="one text" if pair is not None else "a text and its pair",
                try_="leave text_pair out" if pair is not None else "{'text': ..., 'text_pair': ...}",
            )
        return [(row["text"], name, pair) for name in chosen]

    def _forward(self, calls: list[Call], batch_size: int = 64) -> list[Prediction]:
        texts, names, pairs = zip(*calls, strict=True)
        return self._predictor.predict(texts, names, pairs, batch_size=batch_size)

    def postprocess(self, found: list[Prediction]) -> dict[str, Any] | list[dict[str, Any]]:
        """Return one answer as a dict, several as a list of them."""
        answers = [to_dict(one) for one in found]
        return answers[0] if len(answers) == 1 else answers

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Answer as many texts at a time as make a batch: their rows may be of several tasks."""
        require_number("batch_size", batch_size, where=f"pipeline({TASK!r})", whole=True, least=1, error=DataError)
        rows = _in_order(inputs)
        while part := list(islice(rows, batch_size)):
            calls = [self.preprocess(row, **preprocess_params) for row in part]
            every = [call for own in calls for call in own]
            found: Iterator[Any] = iter(self.forward(every, batch_size=batch_size, **forward_params))
            for own in calls:
                yield self.postprocess(list(islice(found, len(own))), **postprocess_params)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the adapters, heads and tokenizer; the folder needs hfadapt to be read, and no code of its own."""
        self.model.save_pretrained(save_directory, **kwargs)
        self._predictor.tokenizer.save_pretrained(save_directory)


def _in_order(inputs: Any) -> Iterator[Any]:
    """Iterate; data sets of torch that cannot be iterated over are read by place."""
    return iter(inputs) if hasattr(inputs, "__iter__") else (inputs[place] for place in range(len(inputs)))


def register() -> None:
    """Make ``transformers.pipeline`` know the task ``hfadapt``."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=TaskPipeline, pt_model=AutoModel)
