"""Where a task's rows come from: data sets in memory, files, folders and names for ``datasets.load_dataset``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, HFAdaptError, did_you_mean, raise_all
from .lines import faults_of
from .streams import is_stream

if TYPE_CHECKING:
    import datasets

    from ..multitask.task import Task

__all__ = ["SPLITS", "files_of", "format_of", "load_splits", "read_file"]

SPLITS = ("train", "validation", "test")
_ALIASES = {"train": ("training",), "validation": ("valid", "val", "dev", "eval"), "test": ("testing",)}
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")


def format_of(path: Path) -> str | None:
    """``csv``, ``tsv``, ``json`` or ``parquet`` by a file's name; None for any other."""
    name = path.name.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return _SUFFIXES.get(Path(name).suffix)


def read_file(path: str | os.PathLike[str]) -> datasets.Dataset:
    """Read a CSV, TSV, JSON-lines or parquet file (text formats may be gzipped) into a ``datasets.Dataset``.

    Raises:
        DataError: the file is missing, empty, of an unknown kind or malformed.
    """
    import datasets
    import pyarrow as pa

    path = Path(path)
    kind = format_of(path)
    if kind is None:
        raise DataError(
            "unknown kind of data file",
            where=str(path),
            got=path.suffix,
            allowed=", ".join(sorted(_SUFFIXES)),
            try_="save it as CSV or JSON lines",
        )
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(
            "no such file",
            where=str(path),
            got=path.name,
            allowed="a file that is there",
            try_=did_you_mean(path.name, near) or f"paths count from {Path.cwd()}",
        )
    try:
        table = _read_table(path, kind)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise_all(_unreadable(path, kind, error))
        raise  # never reached: there is one error at least
    return datasets.Dataset(table)


def _unreadable(path: Path, kind: str, error: Exception) -> list[DataError]:
    """What keeps a file from being read: each of its bad lines, or what the reader said."""
    what = f"cannot read the {kind} file"
    found = [
        DataError(what, where=f"{path}, line {line}", got=got, allowed=allowed, try_="mend the line, or drop it")
        for line, got, allowed in faults_of(path, kind)
    ]
    whole = DataError(
        what,
        where=str(path),
        got=str(error).strip() or type(error).__name__,
        allowed=f"a {kind} file with rows",
        try_="look at its beginning, and whether its name says what it is",
    )
    return found or [whole]


def _read_table(path: Path, kind: str) -> Any:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    if kind == "parquet":
        return pyarrow.parquet.read_table(path)
    with pa.input_stream(str(path), compression="detect") as stream:
        if kind == "json":
            # a row may be longer than pyarrow's default block of 1 MiB
            return pyarrow.json.read_json(stream, pyarrow.json.ReadOptions(block_size=1 << 26))
        return pyarrow.csv.read_csv(
            stream,
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=False),
        )


def _read_folder(folder: Path, where: str) -> dict[str, Any]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and format_of(p))
    splits: dict[str, Any] = {}
    for path in files:
        splits.setdefault(path.name.split(".")[0], path)
    if not splits:
        raise DataError(
            "the folder holds no data file",
            where=where,
            got=str(folder),
            allowed="train.*, validation.*, test.* as CSV, TSV, JSON lines or parquet",
            try_="name its files train.csv, validation.csv, test.csv",
        )
    return splits


def _load_named(name: str, config: str | None, where: str) -> Mapping[str, Any]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, config)
    except (
        Exception
    ) as error:  # the hub, the network and a data set's own code fail in many ways; all name the data set
        raise DataError(
            "datasets.load_dataset failed",
            where=where,
            got=f"{name!r}{f', {config!r}' if config else ''}: {type(error).__name__}: {error}",
            allowed="a file, a folder with train.*, a datasets object, or a name that load_dataset knows",
            try_="check the path or the name; without a network, save the data set as parquet files",
        ) from error
    return {str(split): data for split, data in loaded.items()}


def _one_split(value: Any, where: str) -> Any:
    import datasets

    if isinstance(value, datasets.Dataset) or is_stream(value):
        return value
    if isinstance(value, (str, os.PathLike)):
        return read_file(value)
    pandas = sys.modules.get("pandas")  # who has a frame has imported it
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return _of_frame(value, where)
    if isinstance(value, (list, tuple)):
        if not all(isinstance(row, Mapping) for row in value):
            raise DataError(
                "rows must be dicts",
                where=where,
                got=type(value[0]).__name__,
                allowed="dicts with a key a column",
                try_="[{'text': '...', 'label': 0}]",
            )
        return datasets.Dataset.from_list([dict(row) for row in value])
    raise DataError(
        "cannot make a data set of this",
        where=where,
        got=type(value).__name__,
        allowed="datasets.Dataset, pandas.DataFrame, list of dicts, path of a file, IterableDataset",
        try_="datasets.Dataset.from_list(rows)",
    )


def _of_frame(frame: Any, where: str) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    try:
        return datasets.Dataset.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(
            "cannot read the data frame",
            where=where,
            got=" ".join(map(str, error.args)),
            allowed="columns of different names, each with values of one kind",
            try_="frame.loc[:, ~frame.columns.duplicated()], or frame.astype({'text': str})",
        ) from error


def _as_mapping(data: Any, where: str) -> Mapping[str, Any]:
    import datasets

    if data is None:
        raise DataError(
            "the task has no data",
            where=where,
            got="data=None",
            allowed="files, a folder, data sets, lists of dicts, or a name",
            try_="Task(..., data=...)",
        )
    if isinstance(data, Mapping):
        return data
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, str) for part in data):
        return _load_named(*data, where)
    if isinstance(data, (str, os.PathLike)):
        path = Path(data)
        if path.is_dir():
            return _read_folder(path, where)
        if path.is_file() or format_of(path):
            return {"train": path}
        name, _, config = str(data).partition(":")
        return _load_named(name, config or None, where)
    if isinstance(data, (datasets.Dataset, list, tuple)):
        return {"train": data}
    return {"train": _one_split(data, where)}


def load_splits(task: Task) -> dict[str, Any]:
    """Return the task's splits, the usual ones under ``train``, ``validation`` and ``test``.

    Each is a ``datasets.Dataset``, or the ``IterableDataset`` that was given.

    Raises:
        DataError: the data cannot be read, there is no training split, or it has no rows.
    """
    where = f"task {task.name!r}"
    given = _as_mapping(task.data, where)
    splits: dict[str, Any] = {}
    unread: list[HFAdaptError] = []
    for name, value in given.items():
        try:
            splits[str(name)] = _one_split(value, f"{where}, {name}")
        except DataError as error:
            unread.append(error)
    raise_all(unread)
    for split, name in _named(task, splits, where).items():
        splits[split] = splits[name]
    if "train" not in splits:
        raise DataError(
            "no training split",
            where=where,
            got=", ".join(splits) or "nothing",
            allowed="a split called train",
            try_="Task(..., splits={'train': '...'})",
        )
    if not is_stream(splits["train"]) and not len(splits["train"]):
        raise DataError(
            "the task is empty",
            where=f"{where}, train",
            got="0 rows",
            allowed="1 row or more",
            try_="look for a wrong file or filter",
        )
    return splits


def _named(task: Task, splits: Mapping[str, Any], where: str) -> dict[str, str]:
    """The usual splits, each with its name in the data."""
    found = {}
    for split in SPLITS:
        wanted = task.splits.get(split)
        if wanted is not None and wanted not in splits:
            raise DataError(
                f"no split {wanted!r} for {split!r}",
                where=where,
                got=wanted,
                allowed=", ".join(splits),
                try_=did_you_mean(wanted, splits) or f"splits: {{{split}: ...}} with one of these",
            )
        names = (wanted,) if wanted is not None else (split, *_ALIASES[split])
        name = next((name for name in names if name in splits), None)
        if name is not None:
            found[split] = name
    return found


def files_of(task: Task) -> dict[str, Path]:
    """The files that the usual splits of a task are read from; splits from elsewhere are left out."""
    data = task.data
    if isinstance(data, (str, os.PathLike)) and not (Path(data).exists() or format_of(Path(data))):
        return {}  # a name for load_dataset
    if not isinstance(data, (str, os.PathLike, Mapping)):
        return {}
    where = f"task {task.name!r}"
    given = {str(name): value for name, value in _as_mapping(data, where).items()}
    named = _named(task, given, where)
    return {s: Path(given[n]) for s, n in named.items() if isinstance(given[n], (str, os.PathLike))}
