"""``hfadapt bench``: the kernels against their rivals on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hfadapt.cli.output import json_option, print_json, print_table

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure the kernels on this machine."""


@bench.command()
@click.option("--op", "names", multiple=True, help="Only this op (may be repeated).")
@click.option("--quick", is_flag=True, help="Fewer repetitions; figures wander more.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
@json_option
def ops(names: tuple[str, ...], quick: bool, out: Path | None, as_json: bool) -> None:
    """Time each op against its rivals: ratios of medians, interleaved in one process."""
    from hfadapt_kernels import bench as kernels_bench

    result = kernels_bench.run_ops(names or None, quick=quick)
    _write(out, result)
    if as_json:
        print_json(result)
        return
    click.echo(_device_line(result["device"]))
    rows = [
        (
            row["case"],
            row["rival"],
            f"{row['median_ms']:.3f}",
            f"{row['rival_median_ms']:.3f}",
            f"{row['ratio']:.2f}x",
            f"{row['goal']}x" if row.get("goal") else None,
            f"{row['floor_fraction']:.0%}" if row.get("floor_fraction") else None,
        )
        for row in result["rows"]
    ]
    print_table(["case", "rival", "ms", "rival ms", "ratio", "goal", "of floor"], rows)


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


def _write(path: Path | None, result: Any) -> None:
    if path is not None:
        import json

        path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _device_line(device: Any) -> str:
    return ", ".join(f"{key}: {value}" for key, value in device.items()) if isinstance(device, dict) else str(device)
