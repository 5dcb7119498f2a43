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


@click.group(invoke_without_command=True)
@click.option("--verbose", is_flag=True, help="Show the traceback of plugins that failed.")
@json_option
@click.pass_context
def plugins(context: click.Context, verbose: bool, as_json: bool) -> None:
    """Show which plugins loaded, from where, with which hooks, and which failed."""
    if context.invoked_subcommand is not None:
        return
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


@plugins.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show where the plugin NAME comes from, what it registered, and why it failed if it did."""
    from ..errors import RegistryError, did_you_mean
    from ..plugins.registered import registered_by

    records = {record.name: record for record in plugin_records()}
    if name not in records:
        raise RegistryError(
            f"no plugin {name!r}",
            where="hfadapt plugins",
            got=repr(name),
            allowed=", ".join(records),
            try_=did_you_mean(name, records) or "hfadapt plugins lists them",
        )
    record = records[name]
    brings = registered_by(record.named_origin)
    if as_json:
        print_json({**dataclasses.asdict(record), "registered": brings})
        return
    facts = (("from", record.origin), ("version", record.version or None), ("status", record.status))
    print_table([record.name, ""], [*facts, ("hooks", ", ".join(record.hooks) or None)])
    rows = [(kind, ", ".join(names)) for kind, names in brings.items()]
    print_table(["registered", ""], rows or [("nothing", "")])
    if record.error:
        click.echo(record.error, err=True)
        if record.traceback:
            click.echo(record.traceback, err=True)
