"""``hfadapt bench triton-static``: what every Triton kernel takes of every card family, compiled without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..adapters.atomic import write_json
from .output import json_option, print_json, print_table, read_table

__all__ = ["triton_static"]

# Field of a row -> head of its column.
_COLUMNS = {name: name for name in ("kernel", "target", "registers", "spills", "shared_bytes", "dtype", "config",
                                    "product", "flops", "bytes")} | {"h100_floor_us": "floor_us"}  # fmt: skip


@click.command("triton-static")
@click.option("--target", "targets", multiple=True, help="For example sm_90 (may be repeated); default: all.")
@click.option("--op", "ops", multiple=True, help="Only this op (may be repeated).")
@click.option("--jobs", default=0, help="Processes; default: one a processor.")
@click.option("--table", type=click.Path(path_type=Path), help="Take unchanged rows from this JSON; write it anew.")
@click.option("--shared", type=click.Path(path_type=Path), help="Write the shared memory alone, as the ops read it.")
@json_option
def triton_static(
    targets: tuple[str, ...], ops: tuple[str, ...], jobs: int, table: Path | None, shared: Path | None, as_json: bool
) -> None:
    """Compile every Triton kernel ahead of time; show registers, spills and shared memory. Needs no GPU.

    Takes some minutes. The exit status is 1 when anything spills or does not fit its card.
    """
    from hfadapt_kernels.triton import static
    from hfadapt_kernels.triton.shared import figures_of

    if shared is not None and (targets or ops):
        raise click.UsageError("--shared takes every op and target: leave out --op and --target")
    versions, known, done = static.versions(), [], 0
    if table is not None:
        # before minutes of compiling, not after them
        table.parent.mkdir(parents=True, exist_ok=True)
        before = read_table(table, ("versions", "rows"), "bench triton-static")
        known = before["rows"] if before is not None and before["versions"] == versions else []

    def show(row: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        click.echo(f"{done} compiled: {row['kernel']} {row['config']} {row['target']}", err=True)

    rows = static.run(targets or None, ops or None, known=known, jobs=jobs, on_row=show)
    result: dict[str, Any] = {"versions": versions, "rows": rows, "problems": static.problems(rows)}
    if table is not None:
        merged = static.merge(known, rows)
        whole = {"versions": versions, "rows": merged, "problems": static.problems(merged)}
        write_json(table, whole)
    if shared is not None:
        write_json(shared, figures_of(rows))
    if as_json:
        print_json(result)
    else:
        print_table(list(_COLUMNS.values()), [[_cell(row[name]) for name in _COLUMNS] for row in rows])
    for line in result["problems"]:
        click.echo(line, err=True)
    if result["problems"]:
        raise SystemExit(1)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("num_warps=", "w").replace("num_stages=", "s").replace("=", "")
