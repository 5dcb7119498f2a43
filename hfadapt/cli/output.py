"""How commands print: rich tables for people, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["base_option", "console", "json_option", "print_json", "print_table", "read_table"]


def json_option(command: Any) -> Any:
    """The option ``--json``, the same on every command that a script would read."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


def base_option(command: Any) -> Any:
    """The option ``--base``, the same on every command that puts an adapter on its base."""
    return click.option(
        "--base", metavar="MODEL", help="The base: a hub name, a folder or package:NAME, in place of the recorded one."
    )(command)


def console() -> Console:
    """The console of standard output; plain where that is no terminal, and respecting NO_COLOR."""
    from rich.console import Console

    plain = Console()
    # A pipe has no width of its own: 80 columns would cut tables that a log can hold.
    return plain if plain.is_terminal else Console(width=160, highlight=False)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def read_table(path: Path, keys: Iterable[str], where: str) -> dict[str, Any] | None:
    """A JSON table that a command wrote before and is about to write anew; ``None`` without one.

    Args:
        path: The file.
        keys: That every table of the command's has.
        where: The command.

    Raises:
        HFAdaptError: another program wrote the file.
    """
    from ..errors import HFAdaptError

    try:
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        table = None
    if not isinstance(table, dict) or not set(keys) <= set(table):
        raise HFAdaptError(
            "the command did not write this file, and leaves it",
            where=where,
            got=str(path),
            allowed=f"a new file, or a table with the keys {', '.join(keys)}",
            try_="another name",
        )
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a table; ``None`` shows as a dash."""
    from rich import box
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    console().print(table)
