"""``hfadapt bench ops``: the ops against their rivals on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..adapters.atomic import write_json
from .output import json_option, print_json, print_table, read_table

__all__ = ["ops"]

COLUMNS = ("case", "allocator", "rival", "ms", "rival ms", "ratio", "goal", "of floor")


@click.command()
@click.argument("patterns", nargs=-1, metavar="[OP|PART_OF_A_CASE]...")
@click.option("--seconds", default=2.0, show_default=True, help="Sampling time a case; figures wander more with less.")
@click.option("--threads", default=2, show_default=True, help="Threads of torch's pool.")
@click.option(
    "--allocator",
    "allocators",
    multiple=True,
    type=click.Choice(["warm", "default"]),
    help="Memory allocator, each in a process of its own; both by default.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write ops.json and a plot an op there.")
@json_option
def ops(
    patterns: tuple[str, ...],
    seconds: float,
    threads: int,
    allocators: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Time ops against their rivals: ratios of medians, interleaved in one process.

    All ops, or those that are named, or the cases whose names hold one of the words.
    """
    from hfadapt_kernels import bench

    from ..errors import HFAdaptError, did_you_mean

    known = bench.all_cases()
    for pattern in patterns:
        if not any(bench.matches(case, pattern) for case in known):
            ops_known = ", ".join(sorted({case.op for case in known}))
            raise HFAdaptError(
                "no case matches",
                where="bench ops",
                got=pattern,
                allowed=ops_known,
                try_=did_you_mean(pattern, {case.op for case in known}) or "hfadapt bench ops, which times all of them",
            )
    if out is not None:
        # before minutes of timing, not after them
        out.mkdir(parents=True, exist_ok=True)
        read_table(out / "ops.json", ("device", "rows"), "bench ops")
    result = bench.run_ops(
        patterns,
        seconds=seconds,
        threads=threads,
        allocators=allocators or tuple(bench.ALLOCATORS),
        on_row=None if as_json else _show_progress,
    )
    if out is not None:
        from .bench_plots import write_bench_plots

        write_json(out / "ops.json", result)
        write_bench_plots(result, out)
    if as_json:
        print_json(result)
        return
    print_table(COLUMNS, [_cells(row) for row in result["rows"]])
    click.echo(", ".join(f"{name}: {value}" for name, value in result["device"].items()))


def _show_progress(row: Mapping[str, Any]) -> None:
    click.echo(f"{row['case']}, {row['allocator']}: {row['ratio']:.2f}x of {row['rival']}", err=True)


def _cells(row: Mapping[str, Any]) -> tuple[str | None, ...]:
    return (
        row["case"],
        row["allocator"],
        row["rival"],
        f"{row['median_ms']:.3f}",
        f"{row['rival_median_ms']:.3f}",
        f"{row['ratio']:.2f}x",
        f"{row['goal']}x" if row["goal"] else None,
        f"{row['floor_fraction']:.0%}",
    )
