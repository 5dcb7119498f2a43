"""``hfadapt bench adapterdrop``: the tables of the AdapterDrop paper on this machine, beside the paper's figures."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..adapters.atomic import write_json
from .adapterdrop_runs import Sizes, Subject
from .output import json_option, print_json, print_table, read_table
from .timing import medians_in_turn

__all__ = ["adapterdrop"]

# Rücklé et al. 2021 (arXiv:2010.11918), on GPUs. Table 1, by tokens a row and rows a batch: times as fast as full
# fine-tuning, training and inference. Table 2: part of the time saved for each layer that tasks share. Table 3: speed
# as a part of full fine-tuning's, training and inference, and as a part of a single adapter's.
_TABLE_1 = {
    "houlsby": {(128, 16): (1.48, 0.94), (128, 32): (1.53, 0.94), (512, 16): (1.36, 0.96), (512, 32): (1.33, 0.96)},
    "bottleneck": {(128, 16): (1.57, 0.95), (128, 32): (1.60, 0.95), (512, 16): (1.41, 0.96), (512, 32): (1.37, 0.96)},
}
_TABLE_2 = {2: 0.043, 4: 0.066, 8: 0.078, 16: 0.084}
_TABLE_3 = {2: (0.92, 0.64, 0.57, 0.68), 8: (0.53, 0.38, 0.33, 0.40), 16: (0.33, 0.24, 0.21, 0.26)}
_METHODS = ("bottleneck", "houlsby", "pal", "lora", "prefix")


@click.command()
@click.option("--table", "tables", type=click.Choice(["1", "2", "3"]), multiple=True, help="Only this table; all.")
@click.option("--method", "methods", multiple=True, help=f"Only this method; default: {', '.join(_METHODS)}.")
@click.option("--drop", "drops", type=int, multiple=True, help="Layers without deltas; default: 0 and four depths.")
@click.option("--tasks", type=int, multiple=True, help="Tasks on one text (table 2); default: 2, 4, 8, 16.")
@click.option("--fused", type=int, multiple=True, help="Adapters under fusion (table 3); default: 2, 8, 16.")
@click.option("--layers", default=12, show_default=True, help="Layers of the model.")
@click.option("--hidden", default=768, show_default=True, help="Width; heads of 64, feed-forward four times.")
@click.option("--rows", default=16, show_default=True, help="Rows a batch.")
@click.option("--tokens", default=128, show_default=True, help="Tokens a row.")
@click.option("--repeats", default=3, show_default=True, help="Turns measured, all calls of a part in turn.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures to this JSON, as each part ends.")
@click.option("--resume", is_flag=True, help="Keep the parts that --output has: a method of a table, or a fusion.")
@click.option("--minutes", type=float, help="Begin no further part after so many; --resume goes on.")
@json_option
def adapterdrop(
    tables: tuple[str, ...],
    methods: tuple[str, ...],
    drops: tuple[int, ...],
    tasks: tuple[int, ...],
    fused: tuple[int, ...],
    layers: int,
    hidden: int,
    rows: int,
    tokens: int,
    repeats: int,
    output: Path | None,
    resume: bool,
    minutes: float | None,
    as_json: bool,
) -> None:
    """Time training and inference against the number of layers that run without adapters.

    Table 1: each method beside full fine-tuning. Products are counted too, and the layers whose forward pass keeps a
    graph: below the lowest delta there is none. Table 2: several tasks on the same text, whose lowest layers run once.
    Table 3: AdapterFusion beside full fine-tuning and beside a single adapter.
    """
    sizes = Sizes(layers, hidden, rows, tokens)
    # Refused before the first table is measured, which takes minutes.
    depths = _depths(drops, layers)
    shared = _positive(tasks or tuple(_TABLE_2), "--tasks")
    counts = _positive(fused or tuple(_TABLE_3), "--fused")
    if resume and output is None:
        raise click.BadParameter("it goes on with a file; give --output", param_hint="--resume")
    of = {**asdict(sizes), "repeats": repeats, "depths": depths}
    result: dict[str, Any] = {"machine": _machine(), "sizes": of, "tables": {"1": {}, "2": {}, "3": {}}}
    if resume and output is not None:
        result["tables"] = _before(output, result) or result["tables"]
    full = functools.cache(lambda: Subject(sizes, None))
    parts: dict[tuple[str, str], Callable[[], list[dict[str, Any]]]] = {}
    for method in methods or _METHODS:
        parts["1", method] = functools.partial(_speed, sizes, method, depths, repeats, full)
        parts["2", method] = functools.partial(_shared, sizes, method, depths, shared, repeats)
    for count in counts:
        parts["3", str(count)] = functools.partial(_fusion, sizes, depths, count, repeats, full)
    wanted = {key: parts[key] for key in sorted(parts, key=lambda key: key[0]) if not tables or key[0] in tables}
    start = time.monotonic()
    left = []
    for (table, name), make in wanted.items():
        if name in result["tables"][table]:
            continue
        if minutes is not None and time.monotonic() - start > 60 * minutes:
            left.append(f"table {table}, {name}")
            continue
        result["tables"][table][name] = make()
        if output is not None:
            write_json(output, result)
    if as_json:
        print_json(result)
        return
    for table, measured in result["tables"].items():
        figures = [row for name, rows in measured.items() if (table, name) in wanted for row in rows]
        if figures:
            click.echo(f"Table {table}")
            heads = list(dict.fromkeys(key for row in figures for key in row))
            print_table(heads, [[_shown(row.get(key)) for key in heads] for row in figures])
    if left:
        click.echo(f"Not begun: {'; '.join(left)}")


def _machine() -> dict[str, Any]:
    import torch

    from ..recipes.results import machine

    return {**machine(), "simd": torch.backends.cpu.get_cpu_capability()}


def _before(output: Path, now: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tables of a file, if they are of this machine and of these sizes; None without the file."""
    from ..errors import ConfigError

    found = read_table(output, ("machine", "sizes", "tables"), "bench adapterdrop")
    if found is None:
        return None
    others = [
        f"{key}: {found[part].get(key)} there, {now[part].get(key)} here"
        for part in ("machine", "sizes")
        for key in {**found[part], **now[part]}
        if found[part].get(key) != now[part].get(key)
    ]
    if others:
        raise ConfigError(
            "figures of another machine or of other sizes are no part of one table",
            where=f"bench adapterdrop, {output}",
            got="; ".join(others),
            allowed="the machine, versions and sizes that the file names",
            try_="--output another.json, or no --resume",
        )
    return found["tables"]


def _depths(drops: Sequence[int], layers: int) -> list[int]:
    if not drops:
        return sorted({0, layers // 4, layers * 5 // 12, layers * 3 // 4, layers - 1})
    for drop in drops:
        if not 0 <= drop < layers:
            raise click.BadParameter(
                f"got {drop}; allowed: 0 to {layers - 1}, with {layers} layers", param_hint="--drop"
            )
    return sorted({0, *drops})


def _positive(numbers: Sequence[int], option: str) -> Sequence[int]:
    for number in numbers:
        if number < 2:
            raise click.BadParameter(f"got {number}; allowed: 2 and more", param_hint=option)
    return numbers


def _speed(
    sizes: Sizes, method: str, depths: Sequence[int], repeats: int, full: Callable[[], Subject]
) -> list[dict[str, Any]]:
    """Table 1: training and inference of a method at each depth, as times full fine-tuning's speed."""
    subject = Subject(sizes, method)
    seconds = _times({"": subject, "full": full()}, depths, repeats)
    flops = full().count()["flops"]
    found = []
    for drop in depths:
        train, infer = (seconds[kind, "", drop] for kind in ("train", "infer"))
        counted = subject.count(drop)
        row = {
            "method": method,
            "dropped": drop,
            "train, times full": seconds["train", "full", 0] / train,
            "infer, times full": seconds["infer", "full", 0] / infer,
            "train, times none dropped": seconds["train", "", 0] / train,
            "products of full": counted["flops"] / flops,
            "layers with graph": counted["with_graph"],
            "train ms": 1e3 * train,
            "infer ms": 1e3 * infer,
        }
        paper = _TABLE_1.get(method, {}).get((sizes.tokens, sizes.rows))
        if not drop and paper:
            row["paper, train"], row["paper, infer"] = paper
        found.append(row)
    return found


def _times(subjects: Mapping[str, Subject], depths: Sequence[int], repeats: int) -> dict[tuple[str, str, int], float]:
    """Seconds of a training step and of a pass of each model, all in turn; the first alone at every depth."""
    calls: dict[tuple[str, str, int], Callable[[], Any]] = {}
    for number, (name, subject) in enumerate(subjects.items()):
        for drop in [0] if number else depths:
            calls["train", name, drop] = functools.partial(subject.train, drop)
            calls["infer", name, drop] = functools.partial(subject.infer, drop)
    return medians_in_turn(calls, repeats)


def _shared(
    sizes: Sizes, method: str, depths: Sequence[int], tasks: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Table 2: the part of the time of several tasks on one text that is saved for each layer they share."""
    subject = Subject(sizes, method, [f"task{number}" for number in range(max(tasks))])
    calls = {(count, drop): functools.partial(subject.infer, drop, count) for count in tasks for drop in depths}
    seconds = medians_in_turn(calls, repeats)
    found = []
    for (count, drop), taken in seconds.items():
        row: dict[str, Any] = {"method": method, "tasks": count, "shared layers": drop, "ms": 1e3 * taken}
        if drop:
            row["saved a layer"] = (1 - taken / seconds[count, 0]) / drop
            row["at most"] = (1 - 1 / count) / sizes.layers
            row["paper"] = _TABLE_2.get(count)
        found.append(row)
    return found


def _fusion(
    sizes: Sizes, depths: Sequence[int], count: int, repeats: int, full: Callable[[], Subject]
) -> list[dict[str, Any]]:
    """Table 3: AdapterFusion's speed as a part of full fine-tuning's and of a single adapter's."""
    fused = Subject(sizes, "bottleneck", [f"a{number}" for number in range(count)], fused=True)
    seconds = _times({"": fused, "full": full(), "single": Subject(sizes, "bottleneck")}, depths, repeats)
    found = []
    for drop in depths:
        row: dict[str, Any] = {"adapters": count, "dropped": drop}
        for kind in ("train", "infer"):
            taken = seconds[kind, "", drop]
            row[f"{kind}, times full"] = seconds[kind, "full", 0] / taken
            row[f"{kind}, times single"] = seconds[kind, "single", 0] / taken
            row[f"{kind} saved"] = 1 - taken / seconds[kind, "", 0]
        if not drop and count in _TABLE_3:
            for name, told in zip(
                ("train, full", "infer, full", "train, single", "infer, single"), _TABLE_3[count], strict=True
            ):
                row[f"paper, {name}"] = told
        found.append(row)
    return found


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
