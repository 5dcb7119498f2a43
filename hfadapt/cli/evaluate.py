"""``hfadapt evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import DataError
from .output import json_option, print_json, print_table

__all__ = ["evaluate"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data", "given", multiple=True, metavar="TASK=PATH", help="A task's data; known for named data sets.")
@click.option("--task", "tasks", multiple=True, help="Only this task (may be repeated).")
@click.option("--split", default="test", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@json_option
def evaluate(
    folder: Path, given: tuple[str, ...], tasks: tuple[str, ...], split: str, batch_size: int, as_json: bool
) -> None:
    """Score the adapter in FOLDER on its tasks' data."""
    from ..recipes.evaluate import evaluate_folder

    data = {}
    for assignment in given:
        name, equals, path = assignment.partition("=")
        if not equals:
            raise DataError("not TASK=PATH", got=repr(assignment), try_="--data my_task=test.csv")
        data[name] = path
    scores = evaluate_folder(folder, data, tasks, split, batch_size)
    if as_json:
        print_json(scores)
        return
    rows = [
        (task, metric, f"{value:.4f}") for task, values in scores["tasks"].items() for metric, value in values.items()
    ]
    print_table(["task", "metric", split], [*rows, ("macro", "", f"{scores['macro']:.4f}")])
