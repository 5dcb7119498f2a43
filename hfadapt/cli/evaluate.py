"""``hfadapt evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import DataError
from .output import base_option, json_option, print_json, print_table

__all__ = ["evaluate"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--data", "given", multiple=True, metavar="TASK=PATH", help="A task's data; known for runs and named data sets."
)
@click.option("--task", "tasks", multiple=True, help="Only this task (may be repeated).")
@click.option("--split", help="Of the data; by default those of the run, or test.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@base_option
@json_option
def evaluate(
    folder: Path,
    given: tuple[str, ...],
    tasks: tuple[str, ...],
    split: str | None,
    batch_size: int,
    base: str | None,
    as_json: bool,
) -> None:
    """Score the adapter in FOLDER on its tasks' data.

    FOLDER is that of a run, whose recipe knows the data, or one that holds an adapter.
    """
    from ..recipes.evaluate import evaluate_folder

    data = {}
    for assignment in given:
        name, equals, path = assignment.partition("=")
        if not equals:
            raise DataError(
                "not TASK=PATH",
                where="--data",
                got=repr(assignment),
                allowed="TASK=PATH",
                try_="--data my_task=test.csv",
            )
        data[name] = path
    scores = evaluate_folder(folder, data, tasks, split, batch_size, base)
    if as_json:
        print_json(scores)
        return
    rows = [
        (task, metric, f"{value:.4f}") for task, values in scores["tasks"].items() for metric, value in values.items()
    ]
    print_table(["task", "metric", scores["split"]], [*rows, ("macro", "", f"{scores['macro']:.4f}")])
