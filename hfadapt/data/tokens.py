"""Tokenised rows in flat arrays: tokenised once, kept in memory, and on disk where a folder is given."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..errors.full_disk import writing
from ..errors.rows import RowPlace
from ..multitask.heads import IGNORE, Span, TokenClassification
from .arrays import Arrays
from .columns import Columns, no_label
from .tokenizer import sole_use
from .windows import check_stride, window_labels

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from ..multitask.task import Task

__all__ = ["Ragged", "TokenTable", "default_max_length", "tokenize"]

logger = logging.getLogger(__name__)
_CACHE_VERSION = 2


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths in one flat array.

    Args:
        flat: All numbers, row after row.
        offsets: Row i is ``flat[offsets[i]:offsets[i + 1]]``, int64 [N + 1].
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: list[Any], dtype: Any) -> Ragged:
        """Pack a list of sequences."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        flat = np.concatenate([np.asarray(row, dtype) for row in rows]) if rows else np.zeros(0, dtype)
        return cls(flat, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Length of every row."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class TokenTable:
    """One tokenised split of one task.

    Args:
        fields: ``input_ids`` and, where they apply, ``token_type_ids`` and ``pair_input_ids`` (int32); or an image or
            audio array a row; and ``labels`` (float32).
        truncated: How many rows were cut.
        longest: Longest row before cutting, in tokens.
    """

    fields: dict[str, Ragged | Arrays]
    truncated: int = 0
    longest: int = 0

    def __len__(self) -> int:
        return len(self.fields["labels"])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, of both texts where they are encoded separately; 1 for rows without tokens."""
        return self.widths.sum(1)

    @property
    def widths(self) -> np.ndarray:
        """Tokens of each text of each row that is padded on its own, int64 [N, K]; 1 for rows without tokens."""
        texts = [self.fields[name] for name in ("input_ids", "pair_input_ids") if name in self.fields]
        return np.stack([one.lengths for one in texts], 1) if texts else np.ones((len(self), 1), np.int64)

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Return the fields of one row."""
        return {name: ragged[index] for name, ragged in self.fields.items()}


def default_max_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokenizer's limit, at most 512 (a limit of 10^30 means that none was recorded)."""
    return min(int(tokenizer.model_max_length), 512)


def tokenize(
    task: Task,
    columns: Columns,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> TokenTable:
    """Tokenise one split, or read it from ``cache_dir`` when the same was tokenised before.

    Rows longer than ``max_length`` are cut, with one warning that says how many.

    Args:
        task: Says how pairs are fed and what the labels mean.
        columns: The checked texts and labels.
        tokenizer: A fast tokenizer for token labels and spans; ``None`` will do for images and audio.
        max_length: Overrides the task's own.
        cache_dir: Folder for the tokenised arrays; ``None`` keeps them in memory only.

    Raises:
        DataError: the tokenizer cannot do what the task needs.
    """
    if columns.arrays is not None:
        return _table_of_arrays(task, columns, columns.arrays)
    assert tokenizer is not None  # the mixture binds one before it tokenises texts
    limit = task.max_length or max_length or default_max_length(tokenizer)
    if not tokenizer.is_fast and isinstance(task.head, (Span, TokenClassification)):
        raise DataError(
            f"{type(task.head).__name__} needs a fast tokenizer to align tokens with words",
            where=columns.where,
            got=type(tokenizer).__name__,
            allowed="a PreTrainedTokenizerFast",
            try_="AutoTokenizer.from_pretrained(...) with the tokenizers package installed",
        )
    path = None
    if cache_dir is not None:
        path = Path(cache_dir) / f"{_fingerprint(task, columns, tokenizer, limit)}.safetensors"
        cached = _read(path)
        if cached is not None:
            return cached
    with sole_use(tokenizer):
        table = _encode(task, columns, tokenizer, limit)
    if table.truncated:
        logger.warning(
            "%s: %d of %d rows were cut to %d tokens (the longest has %d); raise max_length to keep more",
            columns.where,
            table.truncated,
            len(columns),
            limit,
            table.longest,
        )
    if path is not None:
        _write(path, table)
    return table


def _table_of_arrays(task: Task, columns: Columns, arrays: Arrays) -> TokenTable:
    labels = columns.labels
    if labels is None:
        labels = [np.full(_label_width(task), no_label(task), np.float32) for _ in range(len(columns))]
    return TokenTable({arrays.role: arrays, "labels": Ragged.of(labels, np.float32)})


def _label_width(task: Task) -> int:
    if task.head.kind == "multi_label":
        return getattr(task.head, "num_labels", 1)
    return 1


def _encode(task: Task, columns: Columns, tokenizer: PreTrainedTokenizerBase, limit: int) -> TokenTable:
    if columns.targets is not None and task.head.label_place == "token":
        return _continue(columns, tokenizer, limit)
    span, words = isinstance(task.head, Span), isinstance(task.head, TokenClassification)
    separate = task.pair == "separate" and columns.pairs is not None
    first = [columns.texts] if separate or columns.pairs is None else [columns.texts, columns.pairs]
    stride = task.head.doc_stride if isinstance(task.head, Span) else None
    windows: dict[str, Any] = {}
    if stride is not None:
        questions = tokenizer(columns.texts, add_special_tokens=False, verbose=False)["input_ids"]
        check_stride(stride, limit, questions, tokenizer.num_special_tokens_to_add(pair=True), columns.where)
        windows = {"stride": stride, "return_overflowing_tokens": True}
    options: dict[str, Any] = {
        "max_length": limit,
        "truncation": "only_second" if span else True,
        "is_split_into_words": words,
        "return_attention_mask": False,
        "verbose": False,
    }
    try:
        encoded = _call(tokenizer, first, **options, **windows, return_offsets_mapping=span)
    except Exception as error:
        # tokenizers raises its bare Exception when a question alone fills the sequence
        raise DataError(
            "the tokenizer failed",
            where=columns.where,
            got=f"{type(error).__name__}: {error}",
            allowed="texts that leave room within max_length",
            try_="a larger max_length, or shorter questions",
        ) from error
    fields: dict[str, Ragged | Arrays] = {"input_ids": Ragged.of(encoded["input_ids"], np.int32)}
    if "token_type_ids" in encoded and not separate:
        fields["token_type_ids"] = Ragged.of(encoded["token_type_ids"], np.int32)
    if span:
        fields["labels"] = Ragged.of(window_labels(columns, encoded, stride), np.float32)
    if stride is not None:
        return TokenTable(fields, 0, max(map(len, encoded["input_ids"]), default=0))
    truncated, longest = _cut(tokenizer, first, encoded["input_ids"], limit, words)
    if separate:
        second = tokenizer(columns.pairs, **options)["input_ids"]
        fields["pair_input_ids"] = Ragged.of(second, np.int32)
        cut, length = _cut(tokenizer, [columns.pairs or []], second, limit, words)
        truncated, longest = truncated + cut, max(longest, length)
    if not span:
        fields["labels"] = Ragged.of(_label_rows(task, columns, encoded, tokenizer, limit), np.float32)
    return TokenTable(fields, truncated, longest)


def _cut(
    tokenizer: PreTrainedTokenizerBase, texts: list[list[Any]], ids: list[list[int]], limit: int, words: bool
) -> tuple[int, int]:
    """Count the rows that were cut and the longest one; only rows at the limit are tokenised again."""
    longest = max(map(len, ids), default=0)
    full = [row for row, tokens in enumerate(ids) if len(tokens) >= limit]
    if not full:
        return 0, longest
    rows = [[column[row] for row in full] for column in texts]
    again = _call(tokenizer, rows, is_split_into_words=words, verbose=False)
    lengths = np.array([len(tokens) for tokens in again["input_ids"]])
    return int((lengths > limit).sum()), int(lengths.max())


def _continue(columns: Columns, tokenizer: PreTrainedTokenizerBase, limit: int) -> TokenTable:
    """Rows of prompt, continuation and end token, with labels on the latter two; long prompts lose their beginning."""
    texts = [columns.texts] if columns.pairs is None else [columns.texts, columns.pairs]
    prompts = _call(tokenizer, texts, verbose=False)["input_ids"]
    ending = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if prompts and ending and all(ids[-1:] == ending for ids in prompts):
        # a tokenizer that ends every text would end the prompt too
        prompts = [ids[:-1] for ids in prompts]
    written = tokenizer(columns.targets, add_special_tokens=False, verbose=False)["input_ids"]
    ids, labels, lengths = [], [], []
    for prompt, target in zip(prompts, written, strict=True):
        answer = [*target, *ending][:limit]
        kept = prompt[max(0, len(prompt) + len(answer) - limit) :]
        lengths.append(len(prompt) + len(target) + len(ending))
        ids.append([*kept, *answer])
        labels.append([IGNORE] * len(kept) + answer)
    fields: dict[str, Ragged | Arrays]
    fields = {"input_ids": Ragged.of(ids, np.int32), "labels": Ragged.of(labels, np.float32)}
    return TokenTable(fields, sum(length > limit for length in lengths), max(lengths, default=0))


def _label_rows(
    task: Task, columns: Columns, encoded: Any, tokenizer: PreTrainedTokenizerBase, limit: int
) -> list[Any]:
    if columns.targets is not None:
        return tokenizer(text_target=columns.targets, max_length=limit, truncation=True, verbose=False)["input_ids"]
    if columns.labels is None:
        return [np.full(_label_width(task), no_label(task), np.float32) for _ in range(len(columns))]
    if isinstance(task.head, TokenClassification):
        return [_word_labels(encoded, row, tags, columns.where) for row, tags in enumerate(columns.labels)]
    return columns.labels


def _word_labels(encoded: Any, row: int, tags: np.ndarray, where: str) -> np.ndarray:
    """The first piece of each word carries the word's label, all other tokens carry none."""
    words = encoded.word_ids(row)
    highest = max((w for w in words if w is not None), default=-1)
    if highest >= len(tags):
        raise DataError(
            "fewer labels than words",
            where=RowPlace(where, row),
            got=f"{len(tags)} labels, at least {highest + 1} words",
            allowed="one label a word",
            try_=f"{IGNORE} as the label of words that count for nothing, so that there are {highest + 1}",
        )
    labels = np.full(len(words), IGNORE, np.float32)
    previous = None
    for token, word in enumerate(words):
        if word is not None and word != previous:
            labels[token] = tags[word]
        previous = word
    return labels


def _call(tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[Any]], **options: Any) -> BatchEncoding:
    """Tokenise one text a row, or two."""
    return tokenizer(texts[0], texts[1] if len(texts) > 1 else None, **options)


def _backend(tokenizer: Any) -> Any:
    """The object of the ``tokenizers`` library behind a fast tokenizer; the base class of tokenizers lacks it."""
    return tokenizer.backend_tokenizer


def _fingerprint(task: Task, columns: Columns, tokenizer: PreTrainedTokenizerBase, limit: int) -> str:
    digest = hashlib.sha256()
    model = _backend(tokenizer).to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())
    head = [_CACHE_VERSION, model, tokenizer.truncation_side, limit, task.pair, task.head.to_dict()]
    digest.update(json.dumps(head, default=str).encode())
    digest.update(json.dumps([columns.texts, columns.pairs, columns.targets]).encode())
    for labels in columns.labels or []:
        digest.update(labels.tobytes() + b"|")
    return digest.hexdigest()[:32]


def _read(path: Path) -> TokenTable | None:
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            notes = json.loads(file.metadata()["notes"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        # a damaged cache only costs time: tokenise again and overwrite it
        logger.warning("the token cache %s is damaged (%s); tokenising again", path, error)
        return None
    names = {name.removesuffix(".offsets") for name in tensors if name.endswith(".offsets")}
    return TokenTable({name: Ragged(tensors[f"{name}.flat"], tensors[f"{name}.offsets"]) for name in names}, **notes)


def _write(path: Path, table: TokenTable) -> None:
    from safetensors.numpy import save_file

    ragged = {name: field for name, field in table.fields.items() if isinstance(field, Ragged)}
    tensors = {f"{n}.flat": r.flat for n, r in ragged.items()}
    tensors |= {f"{n}.offsets": r.offsets for n, r in ragged.items()}
    with writing(path, sum(tensor.nbytes for tensor in tensors.values())):
        path.parent.mkdir(parents=True, exist_ok=True)
        # several ranks may write the same file: each writes its own and renames it
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(handle)
        try:
            notes = json.dumps({"truncated": table.truncated, "longest": table.longest})
            save_file(tensors, temporary, metadata={"notes": notes})
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
