"""``hfadapt plugins``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from .output import json_option, print_json, print_table

__all__ = ["plugin_records", "plugins"]

if TYPE_CHECKING:
    from ..plugins.loading import PluginRecord


def plugin_records() -> list[PluginRecord]:
    """What became of every plugin, their commands included."""
    from ..plugins.loading import add_commands, report
    from .group import LazyGroup

    add_commands(LazyGroup())
    return report()


@click.command()
@click.option("--verbose", is_flag=True, help="Show the traceback of plugins that failed.")
@json_option
def plugins(verbose: bool, as_json: bool) -> None:
    """Show which plugins loaded, from where, with which hooks, and which failed."""
    records = plugin_records()
    if as_json:
        print_json([dataclasses.asdict(record) for record in records])
        return
    rows = [(r.name, r.origin, r.version or None, r.status, ", ".join(r.hooks) or None) for r in records]
    print_table(["plugin", "from", "version", "status", "hooks"], rows)
    for record in records:
        if record.error:
            click.echo(f"{record.name}: {record.error}", err=True)
            if verbose and record.traceback:
                click.echo(record.traceback, err=True)
