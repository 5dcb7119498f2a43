"""``hfadapt regularizers``."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from .output import json_option, print_json, print_table

__all__ = ["regularizers"]

_COLUMNS = {
    "regularizer": "regularizer",
    "paper": "paper",
    "summary": "what it trains on",
    "perturbs": "perturbs",
    "per_task": "per task",
    "cost": "cost",
    "origin": "from",
}


@click.command()
@click.argument("name", required=False)
@json_option
def regularizers(name: str | None, as_json: bool) -> None:
    """List regularizers of training with their options, or show those of the regularizer NAME.

    Cost is in forward units of full fine-tuning: a forward pass is 1, a backward pass to the word embeddings 1, one to
    the parameters 2; a step without a regularizer costs 3.
    """
    from .. import plugins

    registry = plugins.regularizers()
    found = [_row(one, registry[one], registry.origin(one)) for one in (registry if name is None else [name])]
    if as_json:
        print_json(found if name is None else found[0])
        return
    if name is None:
        print_table([*_COLUMNS.values()], [[row[key] for key in _COLUMNS] for row in found])
        click.echo()
    for row in found:
        print_table([f"{row['regularizer']} option", "type", "default"], [tuple(o.values()) for o in row["options"]])
        if name is None:
            click.echo()


def _row(name: str, kind: Any, origin: str) -> dict[str, Any]:
    default = kind()
    cost = default.cost()
    return {
        "regularizer": name,
        "class": kind.__name__,
        "paper": kind.paper,
        "summary": kind.summary,
        "perturbs": "word embeddings" if kind.perturbs_words else "-",
        "per_task": "no" if kind.repeats_updates else "yes",
        "cost": cost.units,
        "origin": origin,
        "options": [
            {"name": one.name, "type": str(one.type), "default": repr(getattr(default, one.name))}
            for one in dataclasses.fields(kind)
        ],
    }
