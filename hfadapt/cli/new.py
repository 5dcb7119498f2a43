"""``hfadapt new``."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ..errors import ConfigError
from ..errors.version import __version__

__all__ = ["new"]

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@click.group()
def new() -> None:
    """Write the files of something new."""


@new.command()
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to; by default ./hfadapt-plugin-NAME.")
def plugin(name: str, folder: Path | None) -> None:
    """Write a distribution with a method NAME that runs and passes the conformance suite.

    Its delta is a learned shift: put yours in its place.
    """
    from .. import plugins
    from .plugin_template import files_of_a_plugin

    if not _NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        raise ConfigError(
            "bad name of a plugin",
            where="hfadapt new plugin",
            got=repr(name),
            allowed="lower case letters, digits and single underscores, beginning with a letter",
            try_=near if _NAME.fullmatch(near) else "my_method",
        )
    if name in plugins.methods():
        raise ConfigError(
            "a method of that name exists",
            where="hfadapt new plugin",
            got=f"{name!r}, from {plugins.methods().origin(name)}",
            allowed="a name that no plugin has registered",
            try_=f"my_{name}",
        )
    place = folder or Path(f"hfadapt-plugin-{name.replace('_', '-')}")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(
            "there is something already",
            where=str(place),
            got="a folder with files" if place.is_dir() else "a file",
            allowed="a folder that is empty or not there",
            try_="--folder FOLDER",
        )
    for path, text in files_of_a_plugin(name, __version__).items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text, encoding="utf-8")
    click.echo(f"Wrote {place}. Next: pip install -e {place} && pytest {place}")
