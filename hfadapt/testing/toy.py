"""A tokenizer of 99 words and small learnable tasks, for tests of everything between data and Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..errors.names import names_of
from ..multitask.heads import Classification, Head, Regression
from ..multitask.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..multitask.model import MultiTaskModel

__all__ = ["every_toy_task", "tiny_tokenizer", "toy_batch", "toy_model", "toy_rows", "toy_tasks"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_WORDS = 95


def tiny_tokenizer(padding_side: str = "right", max_length: int = 64) -> PreTrainedTokenizerFast:
    """Return a fast word tokenizer with ``[CLS] a [SEP] b [SEP]`` and the words ``w0`` to ``w94``.

    Args:
        padding_side: ``right`` or ``left``.
        max_length: Its ``model_max_length``.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*_SPECIAL, *(f"w{i}" for i in range(_WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        padding_side=padding_side,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def toy_rows(kind: str, count: int, seed: int = 0, words: Sequence[int] = (3, 9)) -> list[dict[str, Any]]:
    """Return rows whose label is a simple function of their words.

    Args:
        kind: ``class`` (is the first word in the upper half), ``number`` (the first word over 94) or ``pair`` (do both
            texts begin in the same half).
        count: How many rows.
        seed: Of the words.
        words: Shortest and longest text.
    """
    stream = np.random.default_rng([seed, count])

    def text() -> list[int]:
        return stream.integers(0, _WORDS, stream.integers(words[0], words[1] + 1)).tolist()

    rows = []
    for _ in range(count):
        first, second = text(), text()
        row: dict[str, Any] = {"text": " ".join(f"w{i}" for i in first)}
        upper = int(first[0] > _WORDS // 2)
        if kind == "pair":
            row["text_pair"] = " ".join(f"w{i}" for i in second)
            row["label"] = int(upper == int(second[0] > _WORDS // 2))
        else:
            row["label"] = first[0] / (_WORDS - 1) if kind == "number" else upper
        rows.append(row)
    return rows


def toy_tasks(sizes: Sequence[int] = (64, 32, 16), validation: int = 8) -> list[Task]:
    """Return three tasks: a classification, a regression, and a pair task whose texts are encoded separately.

    Args:
        sizes: Training rows of each.
        validation: Validation rows of each.
    """
    kinds: tuple[tuple[str, str, Head, Literal["joint", "separate"]], ...] = (
        ("topic", "class", Classification(2), "joint"),
        ("score", "number", Regression(0.0, 1.0), "joint"),
        ("same", "pair", Classification(2), "separate"),
    )
    return [
        Task(
            name,
            head,
            data={"train": toy_rows(kind, size, 1), "validation": toy_rows(kind, validation, 2)},
            pair=pair,
        )
        for (name, kind, head, pair), size in zip(kinds, sizes, strict=False)
    ]


def every_toy_task() -> list[Task]:
    """The toy tasks and one of each further kind: token labels, spans, several labels a row."""
    from .. import MultiLabel, Span, TokenClassification

    span = {"text": "w1", "text_pair": "w2 w3", "label": {"text": ["w3"], "answer_start": [3]}}
    return [
        *toy_tasks(),
        Task("tags", TokenClassification(3), data=[{"text": ["w1", "w2", "w5"], "label": [0, 2, 1]}]),
        Task("span", Span(), data=[span]),
        Task("labels", MultiLabel(4), data=[{"text": "w7 w8", "label": [0, 2]}]),
    ]


def toy_model(
    tasks: Task | Sequence[Task] | None = None,
    method: Any = "low_rank",
    model_type: str = "bert",
    seed: int = 0,
    **options: Any,
) -> MultiTaskModel:
    """A tiny multi-task model whose trainable parameters are all random.

    Args:
        tasks: ``every_toy_task()`` by default.
        method: What ``hfadapt.attach`` takes.
        model_type: A type of ``hfadapt.testing.tiny``.
        seed: Of the weights.
        options: Passed to ``MultiTaskModel.from_base``.
    """
    from .. import MultiTaskModel
    from .tiny import tiny_model

    torch.manual_seed(seed)
    model = MultiTaskModel.from_base(tiny_model(model_type), tasks or every_toy_task(), method, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def toy_batch(
    tasks: Task | Sequence[Task] | None = None,
    names: str | Sequence[str] | None = None,
    padding_side: str = "right",
) -> dict[str, Any]:
    """One collated batch with the first training row of each task in ``names`` (all tasks by default)."""
    from .. import TaskMixture

    mix = TaskMixture(tasks or every_toy_task(), tiny_tokenizer(padding_side))
    chosen = names_of(names) if names else [task.name for task in mix.tasks]
    return mix.collator([mix.dataset("train", [name])[0] for name in chosen])
