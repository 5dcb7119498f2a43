"""What a run of minutes is at, on the standard error, so that it can be told from one that hangs."""

from __future__ import annotations

import click

__all__ = ["say"]


def say(text: str) -> None:
    """Tell what comes next."""
    click.echo(text, err=True)
