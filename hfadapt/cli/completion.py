"""``hfadapt completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script; for example: hfadapt completion bash >> ~/.bashrc"""
    from .group import cli

    cls = get_completion_class(shell)
    if cls is None:
        raise click.ClickException(f"click has no completion for {shell}")
    click.echo(cls(cli, {}, "hfadapt", "_HFADAPT_COMPLETE").source())
