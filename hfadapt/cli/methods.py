"""``hfadapt methods``."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from .output import json_option, print_json, print_table

__all__ = ["methods"]


@click.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the table as Markdown, as it stands in docs/methods.md.")
@json_option
def methods(name: str | None, markdown: bool, as_json: bool) -> None:
    """List adaptation methods, or show the options of the method NAME."""
    from .. import plugins
    from .method_table import MARKDOWN_COLUMNS, markdown_methods, method_rows

    registry = plugins.methods()
    if name is not None:
        details = _details(name, registry[name], registry.origin(name))
        if as_json:
            print_json(details)
            return
        print_table(
            ["", name], [(key, details[key]) for key in ("family", "paper", "summary", "page", "tests", "origin")]
        )
        print_table(["option", "type", "default"], [tuple(field.values()) for field in details["fields"]])
        return
    if markdown:
        click.echo(markdown_methods())
        return
    rows = method_rows()
    if as_json:
        print_json(rows)
        return
    print_table(MARKDOWN_COLUMNS, [[row[column] for column in MARKDOWN_COLUMNS] for row in rows])


def _details(name: str, entry: Any, origin: str) -> dict[str, Any]:
    from ..recipes.config.check import fields_of
    from .method_table import page_of

    takes = entry.config_class if hasattr(entry, "config_class") else entry.build
    defaults = _defaults(takes)
    return {
        "name": name,
        "family": entry.family,
        "paper": entry.paper,
        "summary": entry.summary,
        "page": page_of(name) or "-",
        "tests": entry.tests or "-",
        "origin": origin,
        "fields": [
            {"name": field, "type": getattr(hint, "__name__", str(hint)), "default": defaults.get(field, "required")}
            for field, (hint, _) in fields_of(takes).items()
        ],
    }


def _defaults(takes: Any) -> dict[str, str]:
    import inspect

    if dataclasses.is_dataclass(takes):
        return {f.name: repr(f.default) for f in dataclasses.fields(takes) if f.default is not dataclasses.MISSING}
    parameters = inspect.signature(takes).parameters.values()
    return {p.name: repr(p.default) for p in parameters if p.default is not p.empty}
