"""Tables of any size read and written a part at a time: parquet, CSV, TSV and JSON lines."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import DataError, did_you_mean
from ..errors.full_disk import FullDiskError, writing

__all__ = ["FORMATS", "encoded", "format_of", "read_parts", "write_encoded", "write_part"]

FORMATS = ("parquet", "csv", "jsonl")
_ENDINGS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}

Row = dict[str, Any]


def format_of(path: Path) -> str:
    """Return the format of a file by its ending; CSV and JSON lines may be gzipped.

    Raises:
        DataError: it is none that is read here.
    """
    ending = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    found = _ENDINGS.get(ending.lower())
    if found is None or (path.suffix == ".gz" and found == "parquet"):
        allowed = f"{', '.join(_ENDINGS)}; .gz behind the last five"
        raise DataError(
            "no table that is read here",
            where=str(path),
            got=path.suffix or "no ending",
            allowed=allowed,
            try_=f"write it as {path.stem}.jsonl: one object a line, with its texts",
        )
    return found


def read_parts(path: Path, columns: Sequence[str], size: int) -> Iterator[list[Row]]:
    """Yield the rows of a file in parts, in order, with no more than one part in memory.

    Args:
        path: The file.
        columns: To read; each row has them all.
        size: Rows a part.

    Raises:
        DataError: the file is missing, is damaged, or lacks a column; with the row where it is one's fault.
    """
    found = format_of(path)
    read = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl}[found]
    try:
        part: list[Row] = []
        for row in read(path, columns, size):
            part.append(row)
            if len(part) == size:
                yield part
                part = []
        if part:
            yield part
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "the file cannot be read",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            allowed=f"a whole file of the format {found}, in UTF-8",
            try_="look whether it was cut off, and copy or write it again",
        ) from error


def _parquet(path: Path, columns: Sequence[str], size: int) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            _require(columns, file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=min(size, 4096), columns=[*columns]):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(
            "the file cannot be read",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            allowed="a whole parquet file",
            try_="look whether it was cut off, and write it again",
        ) from error


def _csv(path: Path, columns: Sequence[str], size: int) -> Iterator[Row]:
    tabs = ".tsv" in path.suffixes
    with _opened(path, newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if tabs else ",", strict=True)
        _require(columns, rows.fieldnames or (), path)
        for number, row in enumerate(_numbered_errors(rows, path)):
            if any(row[column] is None for column in columns):
                raise DataError(
                    "a row has too few fields",
                    where=f"{path}, row {number}",
                    got=len(row),
                    allowed=f"{len(rows.fieldnames or ())} fields, as in the first line",
                    try_="quotes around a text that holds quotes, commas or line ends",
                )
            yield {column: row[column] for column in columns}


def _numbered_errors(rows: Iterator[Row], path: Path) -> Iterator[Row]:
    """Yield rows of a CSV; an error says which row it is of."""
    number = 0
    try:
        for row in rows:
            yield row
            number += 1
    except csv.Error as error:
        raise DataError(
            "a row cannot be read",
            where=f"{path}, row {number}",
            got=str(error),
            allowed=f"quotes that are closed, and texts of at most {csv.field_size_limit():,} characters",
            try_="the missing quote; or JSON lines or parquet, for longer texts",
        ) from error


def _jsonl(path: Path, columns: Sequence[str], size: int) -> Iterator[Row]:
    with _opened(path) as file:
        number = 0
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            # ValueError: of numbers that are too long as well; the other of too many brackets.
            except (ValueError, RecursionError) as error:
                raise DataError(
                    "not JSON",
                    where=f"{path}, row {number}",
                    got=str(error)[:200],
                    allowed="one JSON object a line",
                    try_="write each row by json.dumps(row), and a line end behind it",
                ) from error
            if not isinstance(row, dict):
                got = type(row).__name__
                raise DataError(
                    "not an object",
                    where=f"{path}, row {number}",
                    got=got,
                    allowed="a line {...} a row",
                    try_=f"{{{columns[0]!r}: ...}} on that line" if columns else "an object on that line",
                )
            _require(columns, list(row), path, f", row {number}")
            yield {column: row[column] for column in columns}
            number += 1


def _opened(path: Path, newline: str | None = None) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


def _require(columns: Sequence[str], names: Sequence[str], path: Path, row: str = "") -> None:
    missing = [column for column in columns if column not in names]
    if missing:
        near = did_you_mean(missing[0], names) or "--text-column, --pair-column"
        got = f"columns {', '.join(map(str, names))}"
        raise DataError(
            f"no column {missing[0]!r}",
            where=f"{path}{row}",
            got=got,
            allowed=f"{path.name} with {', '.join(columns)}",
            try_=near,
        )


def write_part(path: Path, rows: Sequence[Row]) -> None:
    """Write a table whole or not at all; a reader never sees half of it.

    Args:
        path: Its ending says in which format.
        rows: With the same fields each.

    Raises:
        DataError: it cannot be written, say because the disk is full; nothing is left of it then.
    """
    write_encoded(path, encoded(format_of(path), rows))


def write_encoded(path: Path, data: bytes) -> None:
    """Write the bytes of a table whole or not at all.

    Args:
        path: The file.
        data: What ``encoded`` made of the rows.

    Raises:
        DataError: as of ``write_part``.
    """
    temporary = ""
    try:
        with writing(path, len(data)):
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            "a part of the answers cannot be written",
            where=str(path),
            got=error.got if isinstance(error, FullDiskError) else str(error),
            allowed="a folder with room, which this process may write to",
            try_="make room and run the same again: what is written already stays and is not done twice",
        ) from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def encoded(kind: str, rows: Sequence[Row]) -> bytes:
    """Return a table as the bytes of its file.

    Args:
        kind: One of ``FORMATS``.
        rows: With the same fields each.
    """
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    # Lists of labels and words have no column type that both formats know.
    flat = [
        {k: v if isinstance(v, (str, int, float, type(None))) else json.dumps(v) for k, v in r.items()} for r in rows
    ]
    if kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
        return text.getvalue().encode()
    import pyarrow
    import pyarrow.parquet as parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(flat), sink)
    return sink.getvalue().to_pybytes()
