"""``hfadapt bench``: the kernels against their rivals on this machine."""

from __future__ import annotations

import click

from hfadapt.cli.bench_ops import ops
from hfadapt.cli.output import json_option, print_json, print_table

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure the kernels on this machine."""


@bench.command("triton-static")
@click.option("--target", "targets", multiple=True, help="For example sm_90 (may be repeated); default: all.")
@json_option
def triton_static(targets: tuple[str, ...], as_json: bool) -> None:
    """Compile every Triton kernel ahead of time and show registers, spills and shared memory; needs no GPU."""
    from hfadapt_kernels import triton_static as static

    rows = static.run(targets or None)
    if as_json:
        print_json({"rows": rows})
        return
    columns = ["kernel", "target", "registers", "spills", "shared_bytes"]
    extra = [name for name in (rows[0] if rows else {}) if name not in columns]
    print_table([*columns, *extra], [[row.get(name) for name in (*columns, *extra)] for row in rows])


bench.add_command(ops)
