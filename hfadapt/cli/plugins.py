"""``hfadapt plugins``."""

from __future__ import annotations

import dataclasses

import click

from hfadapt.cli.output import json_option, print_json, print_table

__all__ = ["plugins"]


@click.command()
@click.option("--verbose", is_flag=True, help="Show the traceback of plugins that failed.")
@json_option
def plugins(verbose: bool, as_json: bool) -> None:
    """Show which plugins loaded, from where, with which hooks, and which failed."""
    from hfadapt.plugins import report

    records = report()
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
