"""Lines of data files: on which one a row stands, and which ones cannot be read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

__all__ = ["faults_of", "line_of"]

_MOST = 10


def line_of(path: Path, kind: str, row: int) -> int | None:
    """The line, counted from 1, on which a row of a CSV, TSV or JSON-lines file begins; None for files without lines.

    Args:
        path: Of the file.
        kind: ``csv``, ``tsv``, ``json`` or ``parquet``.
        row: Counted from 0, the header left out.
    """
    if kind == "parquet":
        return None
    with _open(path) as text:
        if kind == "json":
            starts = (line for line, content in enumerate(text, 1) if content.strip())
        else:
            starts = (start for start, _ in _records(text, kind))
            next(starts, None)  # the header
        return next((line for index, line in enumerate(starts) if index == row), None)


def faults_of(path: Path, kind: str) -> list[tuple[int, str, str]]:
    """Lines that keep a text file from being read: each with what it holds and what it should, at most ten.

    Args:
        path: Of the file.
        kind: ``csv``, ``tsv``, ``json`` or ``parquet``.
    """
    if kind == "parquet":
        return []
    found: list[tuple[int, str, str]] = []
    try:
        with _open(path) as text:
            for fault in _of_json(text) if kind == "json" else _of_csv(text, kind):
                found.append(fault)
                if len(found) == _MOST:
                    break
    except UnicodeDecodeError:
        found.append(_of_bytes(path))
    except (csv.Error, OSError):
        pass  # what pyarrow said of the file has to do
    return found


def _records(text: io.TextIOBase, kind: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record begins, and its fields; empty lines are none."""
    reader = csv.reader(text, delimiter="\t" if kind == "tsv" else ",")
    start = 1
    for fields in reader:
        if fields:
            yield start, fields
        start = reader.line_num + 1


def _of_csv(text: io.TextIOBase, kind: str) -> Iterator[tuple[int, str, str]]:
    records = _records(text, kind)
    header = next(records, (1, []))[1]
    for line, fields in records:
        if len(fields) != len(header):
            yield line, f"{len(fields)} fields", f"{len(header)}, as the header has; quote texts that hold a separator"


def _of_json(text: io.TextIOBase) -> Iterator[tuple[int, str, str]]:
    for line, content in enumerate(text, 1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except ValueError as error:
            yield line, f"{content.strip()[:60]!r}: {error}", "one JSON object a line"
            continue
        if not isinstance(value, dict):
            yield line, f"{content.strip()[:60]!r}", "one JSON object a line"


def _of_bytes(path: Path) -> tuple[int, str, str]:
    """The first line that is no UTF-8."""
    import pyarrow as pa

    with pa.input_stream(str(path), compression="detect") as stream:
        for line, content in enumerate(io.BufferedReader(stream), 1):
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                return (
                    line,
                    f"byte 0x{content[error.start]:02x}",
                    "UTF-8; iconv -f latin1 -t utf-8 FILE makes it of Latin-1",
                )
    return 1, "bytes that are no text", "UTF-8"


def _open(path: Path) -> io.TextIOWrapper:
    import pyarrow as pa

    return io.TextIOWrapper(pa.input_stream(str(path), compression="detect"), encoding="utf-8-sig", newline="")
