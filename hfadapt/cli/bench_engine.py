"""``hfadapt bench engine``: many tasks on one base beside other libraries, with what was hoped for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..adapters.atomic import write_json
from .engine_cases import CASES, Rivals, Sizes, cases_of, figures_of
from .engine_cases.progress import say
from .engine_cases.rivals import make_environment
from .output import json_option, print_json, print_table, read_table

__all__ = ["engine"]

COLUMNS = ("case", "dtype", "shape", "rival", "ms", "rival ms", "times as fast", "goal", "verdict")


@click.command()
@click.option("--cases", "names", multiple=True, type=click.Choice(CASES), help="Only these (may be repeated); all.")
@click.option("--layers", default=12, show_default=True, help="Layers of a BERT.")
@click.option("--hidden", default=768, show_default=True, help="Width; heads of 64, feed-forward four times.")
@click.option("--rows", default=32, show_default=True, help="Rows a batch.")
@click.option("--tokens", default=64, show_default=True, help="Tokens a row.")
@click.option("--many", default=1000, show_default=True, help="Tasks of the case with many.")
@click.option("--texts", default=128, show_default=True, help="Texts of the case with real text.")
@click.option("--repeats", default=5, show_default=True, help="Turns measured, a case and its rivals in turn.")
@click.option("--seconds", default=120.0, show_default=True, help="For the turns of a case; one counts in any case.")
@click.option("--threads", default=2, show_default=True, help="Threads of every library.")
@click.option(
    "--adapters-env",
    type=click.Path(path_type=Path, file_okay=False),
    help="Virtual environment of adapters and OpenVINO, made there if it is missing; without one they are left out.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write engine.json there; other cases stay."
)
@json_option
def engine(
    names: tuple[str, ...],
    layers: int,
    hidden: int,
    rows: int,
    tokens: int,
    many: int,
    texts: int,
    repeats: int,
    seconds: float,
    threads: int,
    adapters_env: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Time mixed batches, several tasks on one text, fusion and a thousand tasks beside their rivals.

    All calls of a case take turns; figures are medians. A rival that this machine lacks is said so in its row, and so
    is a goal that is missed. What int8 costs in scores stands in benchmarks/int8.
    """
    import torch

    from ..errors import ConfigError
    from ..errors.limits import require_number

    counts = {"layers": layers, "hidden": hidden, "rows": rows, "tokens": tokens, "many": many, "texts": texts}
    for name, number in {**counts, "repeats": repeats, "threads": threads}.items():
        require_number(name, number, where="bench engine", whole=True, least=1, error=ConfigError)
    require_number("seconds", seconds, where="bench engine", above=0, error=ConfigError)
    table: dict[str, Any] = {}
    if out is not None:
        # before minutes of timing, not after them
        out.mkdir(parents=True, exist_ok=True)
        table = read_table(out / "engine.json", ("engine",), "bench engine") or {}
    if adapters_env is not None:
        make_environment(adapters_env)
    sizes = Sizes(**counts, repeats=repeats)
    result: dict[str, Any] = dict(table.get("engine", {}))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    done: list[dict[str, Any]] = []
    try:
        for name in names or CASES:
            say(f"{name}: building its models")
            with Rivals(adapters_env, threads).closing() as rivals:
                cases = cases_of(name, sizes, rivals)
                figures = [row for case in cases for row in figures_of(case, repeats, seconds / len(cases))]
                result[name] = {
                    "machine": _machine(),
                    "rivals": rivals.versions,
                    "sizes": {**counts, "repeats": repeats},
                    "rows": figures,
                }
            done += figures
            if out is not None:
                write_json(out / "engine.json", {"engine": result})
    finally:
        torch.set_num_threads(before)
    if as_json:
        print_json({"engine": {name: result[name] for name in names or CASES}})
        return
    print_table(COLUMNS, [_cells(row) for row in done])
    last = result[(names or CASES)[-1]]["machine"]
    click.echo(", ".join(f"{name}: {value}" for name, value in last.items()))


def _machine() -> dict[str, Any]:
    import importlib.metadata
    import os

    import torch

    from hfadapt_kernels import native
    from hfadapt_kernels.int8_ways import int8_instruction

    from ..recipes.results import machine

    found = {**machine(), "simd": torch.backends.cpu.get_cpu_capability(), "int8 products": int8_instruction()}
    found.pop("dtype")  # each row has its own
    found["C++ ops"] = native.available()
    try:
        found["peft"] = importlib.metadata.version("peft")
    except importlib.metadata.PackageNotFoundError:
        found["peft"] = "not installed"
    return {**found, "load average": round(os.getloadavg()[0], 1)}


def _cells(row: Mapping[str, Any]) -> tuple[str | None, ...]:
    goal = f"{row['goal']:g}x" if row["goal"] else None
    if row["at most"]:
        goal = f"at most {row['at most']:.2f} of its time"
    verdict = row["not measured"] or ""
    if row["met"] is False:
        verdict = "missed" + (", and not ahead" if row["times as fast"] < 1 else "")
    elif row["times as fast"] is not None and row["times as fast"] < 1 and row["goal"]:
        verdict = "not ahead"
    return (
        row["case"],
        row["dtype"],
        row["shape"],
        row["rival"],
        f"{row['ms']:.2f}",
        f"{row['rival ms']:.2f}" if row["rival ms"] else None,
        f"{row['times as fast']:.2f}x" if row["times as fast"] else None,
        goal,
        verdict,
    )
