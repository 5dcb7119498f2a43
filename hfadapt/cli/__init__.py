"""The command line ``hfadapt``: one small file per command, imported when the command is used."""

from .group import cli, main

__all__ = ["cli", "main"]
