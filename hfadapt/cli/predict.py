"""``hfadapt predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..errors import DataError
from .output import base_option, json_option, print_json, print_table

__all__ = ["predict"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--task", "tasks", multiple=True, help="One for all texts, or one for each; default: every task.")
@click.option("--pair", "pairs", multiple=True, help="The second text, for tasks on pairs; one for each text.")
@base_option
@click.option("--input", "inputs", multiple=True, help="A file of rows (parquet, CSV, TSV, JSON lines); repeatable.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the answers to --input.")
@click.option("--tasks", "listed", help="Tasks that answer every row of --input, with commas; default: every task.")
@click.option("--text-column", default="text", show_default=True, help="Of --input.")
@click.option("--pair-column", default="text_pair", show_default=True, help="Of --input, for tasks on pairs.")
@click.option("--format", "form", default="jsonl", show_default=True, help="Of the answers: jsonl, csv or parquet.")
@click.option(
    "--rows-per-part", default=1024, show_default=True, help="Rows of --input answered and written at a time."
)
@click.option("--workers", default=1, show_default=True, help="Processes that share --input.")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Workers on a Ray cluster: 'auto', HOST:PORT, ray://HOST:PORT; without an address one is started here.",
)
@json_option
def predict(
    folder: Path,
    texts: tuple[str, ...],
    tasks: tuple[str, ...],
    pairs: tuple[str, ...],
    base: str | None,
    inputs: tuple[str, ...],
    output: Path | None,
    listed: str | None,
    text_column: str,
    pair_column: str,
    form: str,
    rows_per_part: int,
    workers: int,
    ray: str | None,
    as_json: bool,
) -> None:
    """Predict TEXTS with the adapter in FOLDER; texts come from standard input, one a line, where none are given.

    Texts of different tasks share one forward. Without --task every text is answered by every task that fits it.

    With --input whole files are answered into --output, in parts; the same command goes on where a run stopped.
    """
    if inputs or output or listed or ray:
        if texts or pairs or not inputs or output is None:
            raise click.UsageError("--input and --output go together, with --tasks, --ray, and without TEXTS, --pair")
        named = (*tasks, *(name.strip() for name in (listed or "").split(",") if name.strip()))
        said = (inputs, str(output), named, text_column, pair_column, form, rows_per_part, base)
        _predict_files(folder, said, workers, ray, as_json)
        return
    from ..inference.predict import Predictor, to_dict
    from ..recipes.finished_run import adapter_of

    lines = list(texts) or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise DataError(
            "there is no text to predict",
            where="hfadapt predict",
            got="no TEXTS, and standard input holds none",
            allowed="texts behind the folder, lines of standard input, or --input FILE --output FOLDER",
            try_=f'hfadapt predict {folder} "a text"',
        )
    if pairs and len(pairs) != len(lines):
        raise click.UsageError(f"{len(lines)} texts, but {len(pairs)} --pair")
    predictor = Predictor.from_folder(adapter_of(folder), base=base)
    chosen = list(tasks) or predictor.fitting(bool(pairs))
    if tasks and len(tasks) in (1, len(lines)):
        rows = [(line, chosen[i % len(chosen)], i) for i, line in enumerate(lines)]
    elif tasks and len(lines) > 1:
        raise click.UsageError(f"{len(lines)} texts, but {len(tasks)} --task: give one, or one for each text")
    else:
        rows = [(line, task, i) for i, line in enumerate(lines) for task in chosen]
    seconds = [pairs[i] for _, _, i in rows] if pairs else None
    found = predictor.predict([line for line, _, _ in rows], [task for _, task, _ in rows], seconds)
    if as_json:
        print_json([to_dict(one) for one in found])
        return
    print_table(
        ["task", "answer", "probability", "text"],
        [
            (
                one.task,
                _shown(one.label),
                None if one.score is None else f"{one.score:.3f}",
                one.text if one.text_pair is None else f"{one.text} || {one.text_pair}",
            )
            for one in found
        ],
    )


def _shown(label: Any) -> Any:
    if isinstance(label, float):
        return f"{label:.3f}"
    if isinstance(label, list) and label and isinstance(label[0], tuple):
        return " ".join(f"{word}/{name}" for word, name in label)
    return label


def _predict_files(folder: Path, said: tuple[Any, ...], workers: int, ray: str | None, as_json: bool) -> None:
    from ..inference.bulk import Bulk, answer_files
    from ..inference.on_ray import answer_files_on_ray
    from ..recipes.finished_run import adapter_of

    bulk = Bulk(str(adapter_of(folder)), *said)
    done = answer_files(bulk, workers) if ray is None else answer_files_on_ray(bulk, ray, workers)
    if as_json:
        print_json({"parts": done.parts, "rows": done.rows, "parts_before": done.before})
    else:
        click.echo(f"{done.rows} rows in {done.parts} parts; {done.before} parts were there already")
