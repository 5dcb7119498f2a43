"""``hfadapt predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .output import base_option, json_option, print_json, print_table

__all__ = ["predict"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--task", "tasks", multiple=True, help="One for all texts, or one for each; default: every task.")
@click.option("--pair", "pairs", multiple=True, help="The second text, for tasks on pairs; one for each text.")
@base_option
@json_option
def predict(
    folder: Path,
    texts: tuple[str, ...],
    tasks: tuple[str, ...],
    pairs: tuple[str, ...],
    base: str | None,
    as_json: bool,
) -> None:
    """Predict TEXTS with the adapter in FOLDER; texts come from standard input, one a line, where none are given.

    Texts of different tasks share one forward. Without --task every text is answered by every task that fits it.
    """
    from ..inference.predict import Predictor, takes_pairs, to_dict
    from ..recipes.finished_run import adapter_of

    lines = list(texts) or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if pairs and len(pairs) != len(lines):
        raise click.UsageError(f"{len(lines)} texts, but {len(pairs)} --pair")
    predictor = Predictor.from_folder(adapter_of(folder), base=base)
    chosen = list(tasks) or [task.name for task in predictor.tasks if bool(pairs) == takes_pairs(task)]
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
