"""``hfadapt bench adapterdrop``: the tables of the AdapterDrop paper on this machine, beside the paper's figures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ..adapters.atomic import write_json
from .adapterdrop_runs import Sizes, Subject
from .output import json_option, print_json, print_table
from .timing import medians_in_turn

__all__ = ["adapterdrop"]

# Rücklé et al. 2021 (arXiv:2010.11918), on GPUs. Table 1 (batches of 16 rows of 128 tokens): times as fast as full
# fine-tuning, training and inference. Table 2: part of the time saved for each layer that tasks share. Table 3: speed
# as a part of full fine-tuning's, training and inference.
_TABLE_1 = {"houlsby": (1.48, 0.94), "bottleneck": (1.57, 0.95)}
_TABLE_2 = {2: 0.043, 4: 0.066, 8: 0.078, 16: 0.084}
_TABLE_3 = {2: (0.92, 0.64), 8: (0.53, 0.38), 16: (0.33, 0.24)}
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
@click.option("--repeats", default=3, show_default=True, help="Turns measured, all calls of a table in turn.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures to this JSON.")
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
    as_json: bool,
) -> None:
    """Time training and inference against the number of layers that run without adapters.

    Table 1: each method beside full fine-tuning. Products are counted too, and the layers whose forward pass keeps a
    graph: below the lowest delta there is none. Table 2: several tasks on the same text, whose lowest layers run once.
    Table 3: AdapterFusion beside full fine-tuning and beside a single adapter.
    """
    import torch

    from ..recipes.results import machine

    sizes = Sizes(layers, hidden, rows, tokens)
    # Refused before the first table is measured, which takes minutes.
    depths = _depths(drops, layers)
    shared = _positive(tasks or tuple(_TABLE_2), "--tasks")
    counts = _positive(fused or tuple(_TABLE_3), "--fused")
    wanted = methods or _METHODS
    result: dict[str, Any] = {
        "machine": {**machine(), "simd": torch.backends.cpu.get_cpu_capability()},
        "sizes": {"layers": layers, "hidden": hidden, "rows": rows, "tokens": tokens, "repeats": repeats},
    }
    for table, make in {
        "1": lambda: _speed(sizes, wanted, depths, repeats),
        "2": lambda: _shared(sizes, wanted, depths, shared, repeats),
        "3": lambda: _fusion(sizes, depths, counts, repeats),
    }.items():
        if not tables or table in tables:
            result[f"table {table}"] = make()
            if not as_json:
                click.echo(f"Table {table}")
                figures = result[f"table {table}"]
                heads = list(dict.fromkeys(key for row in figures for key in row))
                print_table(heads, [[_shown(row.get(key)) for key in heads] for row in figures])
    if output is not None:
        write_json(output, result)
    if as_json:
        print_json(result)


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


def _speed(sizes: Sizes, methods: Sequence[str], depths: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Table 1: training and inference of each method and depth, as times full fine-tuning's speed."""
    full = Subject(sizes, None)
    whole, flops = _times(full, [0], repeats), full.count()["flops"]
    found = []
    for method in methods:
        subject = Subject(sizes, method)
        seconds = _times(subject, depths, repeats, beside=full)
        for drop in depths:
            train, infer = (seconds[kind, drop] for kind in ("train", "infer"))
            counted = subject.count(drop)
            row = {
                "method": method,
                "dropped": drop,
                "train, times full": seconds["train", "full"] / train,
                "infer, times full": seconds["infer", "full"] / infer,
                "train, times none dropped": seconds["train", 0] / train,
                "products of full": counted["flops"] / flops,
                "layers with graph": counted["with_graph"],
                "train ms": 1e3 * train,
                "infer ms": 1e3 * infer,
            }
            if not drop and method in _TABLE_1:
                row["paper, train"], row["paper, infer"] = _TABLE_1[method]
            found.append(row)
        del subject
    found.append({"method": "full", **{f"{kind} ms": 1e3 * whole[kind, 0] for kind in ("train", "infer")}})
    return found


def _times(
    subject: Subject, depths: Sequence[int], repeats: int, beside: Subject | None = None
) -> dict[tuple[str, Any], float]:
    """Seconds of a training step and of a pass at every depth, and of another model's in the same turns."""
    calls: dict[Any, Callable[[], Any]] = {}
    for drop in depths:
        calls["train", drop] = functools.partial(subject.train, drop)
        calls["infer", drop] = functools.partial(subject.infer, drop)
    if beside is not None:
        calls["train", "full"], calls["infer", "full"] = beside.train, beside.infer
    return medians_in_turn(calls, repeats)


def _shared(
    sizes: Sizes, methods: Sequence[str], depths: Sequence[int], tasks: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Table 2: the part of the time of several tasks on one text that is saved for each layer they share."""
    found = []
    for method in methods:
        subject = Subject(sizes, method, [f"task{number}" for number in range(max(tasks))])
        calls = {(count, drop): functools.partial(subject.infer, drop, count) for count in tasks for drop in depths}
        seconds = medians_in_turn(calls, repeats)
        for (count, drop), taken in seconds.items():
            row: dict[str, Any] = {"method": method, "tasks": count, "shared layers": drop, "ms": 1e3 * taken}
            if drop:
                row["saved a layer"] = (1 - taken / seconds[count, 0]) / drop
                row["at most"] = (1 - 1 / count) / sizes.layers
                row["paper"] = _TABLE_2.get(count)
            found.append(row)
    return found


def _fusion(sizes: Sizes, depths: Sequence[int], counts: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Table 3: AdapterFusion's speed as a part of full fine-tuning's and of a single adapter's."""
    full, single = Subject(sizes, None), Subject(sizes, "bottleneck")
    subjects = {count: Subject(sizes, "bottleneck", [f"a{i}" for i in range(count)], fused=True) for count in counts}
    calls: dict[Any, Callable[[], Any]] = {
        ("train", "full"): full.train,
        ("infer", "full"): full.infer,
        ("train", "single"): single.train,
        ("infer", "single"): single.infer,
    }
    for count, subject in subjects.items():
        for drop in depths:
            calls["train", count, drop] = functools.partial(subject.train, drop)
            calls["infer", count, drop] = functools.partial(subject.infer, drop)
    seconds = medians_in_turn(calls, repeats)
    found = []
    for count in counts:
        for drop in depths:
            row: dict[str, Any] = {"adapters": count, "dropped": drop}
            for kind in ("train", "infer"):
                taken = seconds[kind, count, drop]
                row[f"{kind}, times full"] = seconds[kind, "full"] / taken
                row[f"{kind}, times single"] = seconds[kind, "single"] / taken
                row[f"{kind} saved"] = 1 - taken / seconds[kind, count, 0]
            if not drop and count in _TABLE_3:
                row["paper, train, full"], row["paper, infer, full"] = _TABLE_3[count]
            found.append(row)
    return found


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
