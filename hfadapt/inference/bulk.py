"""Whole files answered by several tasks: in parts, at constant memory, and taken up again where a run stopped.

Every part of the input is a file of answers of its own, written whole or not at all. What is there is done; a run that
was killed, or whose disk was full, goes on with what is missing, so that no row is lost and none is answered twice.
Workers are processes that share the parts out by their numbers.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.atomic import write_whole
from ..errors import ConfigError, DataError, HFAdaptError, did_you_mean
from ..errors.limits import require_number
from ..errors.names import names_of
from .folders import digest_of
from .predict import takes_pairs
from .refused import no_such_task
from .tables import FORMATS, format_of, read_parts, write_part

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Bulk", "Done", "Part", "answer_files", "answered", "open_run", "parts_of", "tasks_of"]

logger = logging.getLogger(__name__)

_PLAN = "bulk.json"


@dataclass(frozen=True)
class Bulk:
    """What is answered, and where the answers go; the same for every run that goes on with it.

    Args:
        folder: The adapters; as of ``Engine.from_pretrained``.
        inputs: Files of rows: parquet, CSV, TSV, JSON lines.
        output: Folder of the answers.
        tasks: Each answers every row; all that fit where empty.
        text_column: Of the texts.
        pair_column: Of the second texts, which tasks on pairs read.
        format: Of the answers, as ``hfadapt.inference.tables.FORMATS`` has them.
        rows_per_part: Rows read, answered and written at a time.
        base: Name or folder of the base, where the recorded one cannot be found.
    """

    folder: str
    inputs: tuple[str, ...]
    output: str
    tasks: tuple[str, ...] = ()
    text_column: str = "text"
    pair_column: str = "text_pair"
    format: str = "jsonl"
    rows_per_part: int = 1024
    base: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", names_of(self.inputs))
        object.__setattr__(self, "tasks", names_of(self.tasks))
        require_number("rows_per_part", self.rows_per_part, where="Bulk", whole=True, least=1)
        if self.format not in FORMATS:
            near = did_you_mean(str(self.format), FORMATS)
            raise ConfigError("bad format", where="Bulk", got=repr(self.format), allowed=", ".join(FORMATS), try_=near)
        if not self.inputs:
            raise DataError(
                "no file to read",
                where="Bulk",
                got="inputs=()",
                allowed="one file or more",
                try_="Bulk(inputs=('texts.csv',), ...), or the file's name behind the folder on the command line",
            )
        for one in self.inputs:
            format_of(Path(one))
            _require_readable_name(one)
            if not Path(one).is_file():
                raise DataError(
                    "no such file",
                    where="Bulk",
                    got=one,
                    allowed="files that are there",
                    try_=f"ls {Path(one).parent}, which shows what there is",
                )

    def plan(self) -> dict[str, Any]:
        """What must be the same for the parts of two runs to belong together."""
        stats = [Path(one).stat() for one in self.inputs]
        files = [[one, stat.st_size, stat.st_mtime_ns] for one, stat in zip(self.inputs, stats, strict=True)]
        said = {key: value for key, value in asdict(self).items() if key not in ("inputs", "output")}
        return json.loads(json.dumps({**said, "files": files, "adapters": digest_of(self.folder)}))

    def part(self, file: int, number: int) -> Path:
        """The file of answers of a part."""
        return Path(self.output) / f"answers-{file:04d}-{number:06d}.{self.format}"


@dataclass(frozen=True)
class Done:
    """What a run did.

    Args:
        parts: Written now.
        rows: In them.
        before: Parts that were there already.
    """

    parts: int = 0
    rows: int = 0
    before: int = 0


@dataclass(frozen=True)
class Part:
    """Rows of a file that are answered together.

    Args:
        path: The file, as it was named.
        first: The number of the first of the rows in it.
        rows: What the columns hold.
        target: The file of the answers.
    """

    path: str
    first: int
    rows: list[dict[str, Any]]
    target: Path


def _require_readable_name(name: str) -> None:
    """Raise where a file's name cannot stand in its answers."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "the name of a file is no text",
            where="Bulk",
            got=repr(name),
            allowed="a name in UTF-8, which stands beside every answer",
            try_="rename the file",
        ) from error


def open_run(bulk: Bulk) -> str:
    """Begin, or go on with what was begun.

    Returns:
        The digest of the adapters that answer.

    Raises:
        DataError: the folder of answers holds those of other inputs, tasks or adapters, or cannot be written.
    """
    output, plan = Path(bulk.output), bulk.plan()
    try:
        output.mkdir(parents=True, exist_ok=True)
        for left in output.glob(".answers-*.tmp"):  # of a run that was killed
            left.unlink(missing_ok=True)
        if not (output / _PLAN).exists():
            if any(output.glob("answers-*")):
                raise DataError(
                    "there are answers already, and nothing says of what",
                    where=str(output),
                    got="files answers-*",
                    allowed=f"an empty folder, or one whose {_PLAN} says what was answered",
                    try_="another --output",
                )
            write_whole(output / _PLAN, json.dumps(plan, indent=2).encode())
            return str(plan["adapters"])
        before = json.loads((output / _PLAN).read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            "the folder of answers cannot be used",
            where=str(output),
            got=str(error),
            allowed="a folder that this process can read and write",
            try_="another --output",
        ) from error
    changed = [key for key in {**plan, **before} if plan.get(key) != before.get(key)]
    if changed:
        raise DataError(
            "the answers that are there are of another run",
            where=str(output),
            got="; ".join(f"{key}: {before.get(key)!r}, now {plan.get(key)!r}" for key in changed)[:500],
            allowed="the files, tasks and adapters that the run began with",
            try_="another --output, or the same arguments as before",
        )
    return str(plan["adapters"])


def _require_same_adapters(bulk: Bulk, adapters: str) -> None:
    """Raise unless the folder of adapters holds what `open_run` found in it."""
    found = digest_of(bulk.folder)
    if found != adapters:
        raise DataError(
            "the folder of adapters changed since the run began",
            where=bulk.folder,
            got=f"sha256 {found} of its files" if Path(bulk.folder).is_dir() else "no such folder",
            allowed=f"sha256 {adapters}",
            try_="the folder as it was; or another --output, for answers of what is there now",
        )


def answer_files(bulk: Bulk, workers: int = 1, engine: Engine | None = None) -> Done:
    """Answer every row of the files by every task.

    A part's answers have a row for each of the input's: ``file``, ``row`` (its number in the file, from 0), and
    ``TASK`` and ``TASK_score`` of each task (see ``Prediction``); in parquet and CSV lists are JSON.

    Args:
        bulk: What is answered, and where the answers go.
        workers: Processes, each with an engine of its own.
        engine: To use in this process in place of one that is loaded; for one worker.

    Raises:
        DataError: an unknown task, a row that is no text (with its file and number), a file that cannot be read or
            written, or a worker that was killed. What is written stays, and the next run goes on behind it.
    """
    require_number("workers", workers, where="answer_files", whole=True, least=1)
    adapters = open_run(bulk)
    if workers == 1:
        return _work(bulk, 0, 1, engine, adapters)
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    started = [context.Process(target=_worker, args=(bulk, i, workers, queue, adapters)) for i in range(workers)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    said = []
    while not queue.empty():
        said.append(queue.get())
    failed = [one for one in said if isinstance(one, str)]
    if failed:
        raise DataError(
            "a worker failed",
            where=bulk.output,
            got=failed[0],
            allowed="answers from every worker",
            try_="mend what is named and run the same again: what is written is not done twice",
        )
    if len(said) < workers:
        codes = ", ".join(str(process.exitcode) for process in started)
        raise DataError(
            "a worker was killed",
            where=bulk.output,
            got=f"exit codes {codes}",
            allowed="exit code 0 of each",
            try_="run the same again",
        )
    return Done(sum(d.parts for d in said), sum(d.rows for d in said), sum(d.before for d in said))


def _worker(bulk: Bulk, index: int, workers: int, queue: Any, adapters: str) -> None:
    try:
        queue.put(_work(bulk, index, workers, None, adapters))
    except HFAdaptError as error:
        queue.put(str(error))


def _work(bulk: Bulk, index: int, workers: int, engine: Engine | None, adapters: str | None = None) -> Done:
    """Answer the parts whose turn is a worker's."""
    from .engine import Engine

    engine = engine or Engine.from_pretrained(bulk.folder, base=bulk.base)
    # Behind the reading: a folder that was written meanwhile, or before, would be answered with under the old name.
    if adapters is not None:
        _require_same_adapters(bulk, adapters)
    tasks = tasks_of(bulk, engine)
    parts = rows = before = 0
    for turn, part in enumerate(parts_of(bulk, tasks)):
        if turn % workers != index:
            continue
        if part.target.exists():
            before += 1
            continue
        write_part(part.target, answered(bulk, engine, tasks, part))
        parts, rows = parts + 1, rows + len(part.rows)
        logger.info("%s: %d rows", part.target.name, len(part.rows))
    return Done(parts, rows, before)


def tasks_of(bulk: Bulk, engine: Engine) -> dict[str, bool]:
    """Return the tasks that answer, and whether each reads pairs of texts.

    Args:
        bulk: Names them, or means all.
        engine: Which has them.

    Raises:
        DataError: an unknown task, or one whose name is that of another column of the answers.
    """
    known = {task.name: takes_pairs(task) for task in engine.tasks}
    for name in bulk.tasks:
        if name not in known:
            raise no_such_task(name, known, "Bulk")
    tasks = {name: known[name] for name in bulk.tasks or known}
    fields = ["file", "row", *tasks, *(f"{name}_score" for name in tasks)]
    twice = next((field for field in fields if fields.count(field) > 1), None)
    if twice is not None:
        raise DataError(
            "two columns of the answers would have one name",
            where=f"answers in {bulk.output}",
            got=twice,
            allowed="names of tasks beside file, row and the scores of others",
            try_="serve the task otherwise named",
        )
    return tasks


def parts_of(bulk: Bulk, tasks: dict[str, bool]) -> Iterator[Part]:
    """Yield all parts of the input in order, one in memory at a time.

    Args:
        bulk: Names the files.
        tasks: As of ``tasks_of``.

    Raises:
        DataError: a file cannot be read.
    """
    columns = [bulk.text_column, *([bulk.pair_column] if any(tasks.values()) else [])]
    for file, path in enumerate(bulk.inputs):
        for number, rows in enumerate(read_parts(Path(path), columns, bulk.rows_per_part)):
            yield Part(path, number * bulk.rows_per_part, rows, bulk.part(file, number))


def answered(bulk: Bulk, engine: Engine, tasks: dict[str, bool], part: Part) -> list[dict[str, Any]]:
    """Return the rows of a part's answers, in order.

    Args:
        bulk: Names the columns.
        engine: Which answers.
        tasks: As of ``tasks_of``.
        part: What is answered.

    Raises:
        DataError: a row that no task can answer, with its file and number.
    """
    for number, row in enumerate(part.rows, part.first):
        bad = next((column for column, value in row.items() if not isinstance(value, str)), None)
        if bad is not None:
            where = f"{part.path}, row {number}, column {bad!r}"
            raise DataError(
                "not a text",
                where=where,
                got=repr(row[bad])[:80],
                allowed="a string",
                try_="--text-column and --pair-column with columns of texts, or mend that row",
            )
    count = len(part.rows)
    texts = [row[bulk.text_column] for row in part.rows]
    answers: list[dict[str, Any]] = [{"file": part.path, "row": part.first + i} for i in range(count)]
    # All tasks at once, so that rows of one length share a forward, whichever task they are for.
    asked = [(i, task) for task in tasks for i in range(count)]
    pairs = [part.rows[i][bulk.pair_column] if tasks[task] else None for i, task in asked]
    try:
        found = engine.predict([texts[i] for i, _ in asked], [task for _, task in asked], pairs)
    except DataError as error:
        _name_the_row(engine, part, [(i, task, texts[i], pair) for (i, task), pair in zip(asked, pairs, strict=True)])
        last = part.first + count - 1
        raise _elsewhere(error, f"{part.path}, rows {part.first} to {last}, {error.where}") from error
    for (i, task), one in zip(asked, found, strict=True):
        answers[i] |= {task: one.label, f"{task}_score": one.score}
    return answers


def _name_the_row(engine: Engine, part: Part, asked: list[tuple[int, str, str, str | None]]) -> None:
    """Raise what the engine says of the first row that it refuses, with the row in place of the place in a batch."""
    for i, task, text, pair in asked:
        try:
            engine.check([text], [task], [pair])
        except DataError as error:
            raise _elsewhere(error, f"{part.path}, row {part.first + i}, task {task!r}") from error


def _elsewhere(error: DataError, where: str) -> DataError:
    return DataError(error.what, where=where, got=error.got, allowed=error.allowed, try_=error.try_)
