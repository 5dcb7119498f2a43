"""Training rows that come one after another and that nobody has counted: an ``IterableDataset``, read as it comes.

A row's number counts the rows of all passes through the stream. So a process that trains every second row, or a run
that goes on from a checkpoint, reads past the others and tokenises only the blocks that it trains.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..multitask.heads import Span
from .columns import Columns, read_columns
from .tokens import TokenTable, tokenize

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from ..multitask.task import Task

__all__ = ["BLOCK", "MOST_HELD", "StreamTable", "is_stream", "read_whole"]

#: Rows that are tokenised and held at a time.
BLOCK = 64
#: Rows of a split that is evaluated, whose predictions are held in memory as well.
MOST_HELD = 1_000_000


def is_stream(data: object) -> bool:
    """Say whether data are an ``IterableDataset``, of datasets or of torch; who has one has imported its library."""
    classes = [
        getattr(sys.modules.get(library), "IterableDataset", None) for library in ("datasets", "torch.utils.data")
    ]
    return isinstance(data, tuple(one for one in classes if one is not None))


def read_whole(source: Any, where: str) -> datasets.Dataset:
    """Read a stream to its end, for a split that is evaluated.

    Raises:
        DataError: it fails, its rows are no dicts, or it has more rows than are held.
    """
    reader, rows = _Rows(source, where), []
    while (row := reader.next_of_pass()) is not None:
        rows.append(row)
        if len(rows) > MOST_HELD:
            raise DataError(
                "a split that is evaluated is held in memory, and this stream goes on",
                where=where,
                got=f"more than {MOST_HELD:,} rows",
                allowed=f"at most {MOST_HELD:,}",
                try_="stream.take(10_000) for this split",
            )
    return _as_dataset(rows, source, where)


class StreamTable:
    """The training split of a task whose rows come from a stream, in place of a ``TokenTable``.

    Args:
        task: Whose rows they are.
        source: The ``IterableDataset``.

    Raises:
        DataError: its first rows are not what the task needs, or the task's head makes several rows of one.
    """

    def __init__(self, task: Task, source: Any) -> None:
        self.task, self.source = task, source
        self.where = f"task {task.name!r}, train"
        if isinstance(task.head, Span) and task.head.doc_stride is not None:
            raise DataError(
                "windows of long contexts make several rows of one, which a stream cannot count",
                where=self.where,
                got=f"doc_stride={task.head.doc_stride} and {type(source).__name__}",
                allowed="Span() on a stream, or windows of rows that are all there",
                try_="Span(doc_stride=None), or datasets.Dataset.from_list(list(stream))",
            )
        self._rows = _Rows(source, self.where)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._max_length: int | None = None
        self._at: tuple[int, TokenTable] | None = None
        self._block = 0, self._rows.read(0, BLOCK)
        self.first = self._columns()

    def bind(self, tokenizer: PreTrainedTokenizerBase | None, max_length: int | None) -> StreamTable:
        """Say how texts become tokens, before the first row, and return the table."""
        self._tokenizer, self._max_length, self._at = tokenizer, max_length, None
        return self

    def row(self, number: int) -> dict[str, Any]:
        """Return one tokenised row; numbers that grow read on, a smaller one begins the stream again.

        Raises:
            DataError: the stream fails, ends and cannot be read again, or a row is not what the task needs.
        """
        block, place = divmod(number, BLOCK)
        if self._at is None or self._at[0] != block:
            if self._block[0] != block:
                self._block = block, self._rows.read(block * BLOCK, BLOCK)
            self._at = block, tokenize(self.task, self._columns(), self._tokenizer, self._max_length)
        if place >= len(self._at[1]):
            raise DataError(
                "the stream has ended and does not begin again",
                where=self.where,
                got=f"{block * BLOCK + len(self._at[1]):,} rows",
                allowed="a stream whose every iter() begins anew, or one with all rows of the training",
                try_="an IterableDataset whose __iter__ opens its source; or fewer steps",
            )
        return self._at[1].row(place)

    def _columns(self) -> Columns:
        number, rows = self._block
        try:
            return read_columns(self.task, "train", _as_dataset(rows, self.source, self.where))
        except DataError as error:
            where = f"{error.where or self.where}, of the stream's rows from {number * BLOCK:,} on"
            raise error.at(where) if number else error from None

    def __getstate__(self) -> dict[str, Any]:
        # an iterator can be neither copied nor sent; whoever has the copy reads from the beginning
        return {**self.__dict__, "_rows": _Rows(self.source, self.where)}


class _Rows:
    """The rows of a stream by number, over all passes through it."""

    def __init__(self, source: Any, where: str) -> None:
        self.source, self.where = source, where
        self._iterator: Iterator[Any] | None = None
        self._number, self._passes, self._in_pass = 0, 0, 0
        self._first: str | None = None

    def read(self, start: int, count: int) -> list[Mapping[str, Any]]:
        """Return rows from a number on; fewer, where the stream has ended and does not begin again."""
        if start < self._number:
            self._iterator, self._number, self._passes, self._in_pass = None, 0, 0, 0
        rows: list[Mapping[str, Any]] = []
        while self._number < start + count:
            row = self._next()
            if row is None:
                break
            if self._number >= start:
                rows.append(row)
            self._number += 1
        return rows

    def _next(self) -> Mapping[str, Any] | None:
        row = self.next_of_pass()
        if row is None and self._in_pass:
            self._iterator, self._passes, self._in_pass = None, self._passes + 1, 0
            row = self.next_of_pass()
        if row is None and not self._passes:
            raise DataError(
                "the task is empty",
                where=self.where,
                got=f"a {type(self.source).__name__} without rows",
                allowed="1 row or more",
                try_="look for a wrong file or filter; a generator that was read already gives none",
            )
        return row

    def next_of_pass(self) -> Mapping[str, Any] | None:
        """Return the next row of the present pass, or None at its end."""
        begins = self._iterator is None
        try:
            if self._iterator is None:
                if hasattr(self.source, "set_epoch"):
                    self.source.set_epoch(self._passes)  # streams that shuffle do so anew
                self._iterator = iter(self.source)
            row = next(self._iterator, None)
        except Exception as error:  # files, networks and the user's own code fail in many ways
            raise DataError(
                "the stream failed",
                where=f"{self.where}, row {self._in_pass:,} of pass {self._passes + 1}",
                got=f"{type(error).__name__}: {error}",
                allowed="a stream that gives a dict a row",
                try_=f"next(iter(stream)) alone; its class is {type(self.source).__name__}",
            ) from error
        if row is None:
            return None
        if not isinstance(row, Mapping):
            raise DataError(
                "rows must be dicts",
                where=self.where,
                got=type(row).__name__,
                allowed="dicts with a key a column",
                try_="yield {'text': '...', 'label': 0}",
            )
        self._in_pass += 1
        if begins and not self._passes:
            self._check_begin(repr(row))
        return row

    def _check_begin(self, row: str) -> None:
        if self._first is not None and row != self._first:
            raise DataError(
                "the stream does not begin again where it began, so that rows would be lost or come twice",
                where=self.where,
                got=f"{row[:60]} after {self._first[:60]}",
                allowed="a stream whose every iter() gives the same rows",
                try_="an IterableDataset whose __iter__ opens its source; shuffle(seed=...)",
            )
        self._first = row


def _as_dataset(rows: list[Mapping[str, Any]], source: Any, where: str) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    features = getattr(source, "features", None)
    try:
        return datasets.Dataset.from_list([dict(row) for row in rows], features=features)
    except (pa.ArrowException, TypeError, ValueError, KeyError) as error:
        raise DataError(
            "rows of a stream do not make a table",
            where=where,
            got=f"{type(error).__name__}: {str(error).strip()[:200]}",
            allowed="the same columns and types in every row",
            try_="stream.map(...) to rows of one form",
        ) from error
