"""``hfadapt compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .output import json_option, print_json, print_table

__all__ = ["compare"]


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="RUN RUN...")
@json_option
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Show finished runs beside each other: scores, cost, and what differs in their recipes.

    RUN is the output folder of hfadapt train. A score that is of another split than test says so.
    """
    from ..recipes.compare import compare_runs

    found = compare_runs(runs)
    if as_json:
        print_json(found)
        return
    names = list(found["runs"])
    facts = list(found["runs"].values())
    print_table(["", *names], [("", *(one["title"] for one in facts)), *_scores(facts), *_costs(facts)])
    rows = [(key, *values.values()) for key, values in found["differences"].items()]
    print_table(["recipe", *names], rows or [("no difference", *("" for _ in names))])
    if found["as_written"] is not None:
        click.echo(
            f"The recipes are compared as they were written, defaults left out:\n{found['as_written']}", err=True
        )


def _scores(facts: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    every = ((task, metric) for one in facts for task, own in one["scores"].items() for metric in own)
    lines = list(dict.fromkeys(every))
    rows: list[tuple[Any, ...]] = [
        (f"{task} {metric}", *(_score(one, task, metric) for one in facts)) for task, metric in lines
    ]
    return [*rows, ("macro", *(f"{one['macro']:.4f}" for one in facts))]


def _score(one: dict[str, Any], task: str, metric: str) -> str | None:
    value = one["scores"].get(task, {}).get(metric)
    split = one["splits"].get(task, "test")
    return None if value is None else f"{value:.4f}" + ("" if split == "test" else f" ({split})")


def _costs(facts: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        ("params a task", *(f"{one['parameters_task']:,}" for one in facts)),
        ("all tasks / base", *(f"{one['multiple_of_base']:.3f}x" for one in facts)),
        ("steps", *(f"{one['steps']:,}" for one in facts)),
        ("train s", *(f"{one['seconds']:.0f}" for one in facts)),
        ("tokens/s", *(f"{one['tokens_per_second']:,.0f}" for one in facts)),
        ("base", *(one["model"] for one in facts)),
        ("device", *(one["device"] for one in facts)),
    ]
