"""Every committed configuration of every Triton kernel, compiled ahead of time for every card family, as a table.

``hfadapt bench triton-static`` prints it; ``benchmarks/triton_static/table.json`` is its committed output. It shows
whether a configuration compiles, spills and fits the card; it shows nothing about speed. Must run in a process without
``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import pkgutil
import sys
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from ..misfits import nearest
from .compile import AotCase, compile_case, limits
from .shared import BLOCKS
from .targets import TARGETS
from .work import floor_us, work

__all__ = ["collect", "describe", "merge", "missing", "problems", "run", "sample", "versions"]

Row = dict[str, Any]
_MEASURED = ("registers", "spills", "shared_bytes", "tensor_columns", "product", "error")


def collect(target: str) -> list[tuple[str, AotCase]]:
    """(op, case) of every ``aot_cases`` of the kernels: the ops' ``triton_configs`` and the shared weight gradient."""
    package = importlib.import_module(__name__.rpartition(".triton.")[0])
    found: dict[str, tuple[str, AotCase]] = {}
    folder = Path(package.__path__[0])
    modules = [info.name for info in pkgutil.iter_modules(package.__path__) if info.ispkg]
    modules = [name for name in modules if (folder / name / "triton_configs.py").exists()]
    for op, path in [("every op", "triton.products"), *((name, f"{name}.triton_configs") for name in modules)]:
        # Two sizes may share a configuration: one row shows it.
        for case in importlib.import_module(f"{package.__name__}.{path}").aot_cases(target):
            found.setdefault(_key(case, target), (op, case))
    return list(found.values())


def versions() -> dict[str, str]:
    """What the machine code depends on beside the source: Triton, which brings ptxas and LLVM.

    Raises:
        UnsupportedError: Triton is not installed.
    """
    if importlib.util.find_spec("triton") is None:
        raise UnsupportedError(
            "triton_static",
            "triton is not installed",
            expected="the package triton",
            got=f"none in {sys.prefix}",
            hint="Run pip install 'hfadapt[triton]'.",
        )
    import triton

    return {"triton": triton.__version__}


def missing(rows: Iterable[Row], targets: Iterable[str] = TARGETS) -> list[str]:
    """Committed configurations that no row of a table stands for, and rows that stand for none."""
    proven = {row["key"]: f"{row['kernel']} {row['config']} {row['target']}" for row in rows}
    wanted = {_key(case, name): describe(op, case, name) for name in targets for op, case in collect(name)}
    absent = [f"{row['kernel']} {row['config']} {row['target']}" for key, row in wanted.items() if key not in proven]
    return [f"not in the table: {line}" for line in absent] + [
        f"in the table, no longer committed: {line}" for key, line in proven.items() if key not in wanted
    ]


def merge(*tables: Iterable[Row]) -> list[Row]:
    """The rows of all committed configurations that stand in any of ``tables`` (the last wins), in a fixed order."""
    found = {row["key"]: row for rows in tables for row in rows}
    keys = [_key(case, name) for name in TARGETS for _, case in collect(name)]
    return [found[key] for key in keys if key in found]


def problems(rows: Iterable[Row]) -> list[str]:
    """What is wrong in a table: failed compilations, spills, more than a card has of anything."""
    found = []
    for row in rows:
        where = f"{row['kernel']} {row['config']} {row['target']}"
        if row["error"]:
            found.append(f"{where}: {row['error']}")
            continue
        if row["spills"]:
            found.append(f"{where}: spills {row['spills']}")
        for name, limit in (("registers", "register"), ("shared_bytes", "shared"), ("tensor_columns", "tensor")):
            if row[name] > row[f"{limit}_limit"]:
                found.append(f"{where}: {name} {row[name]}, limit {row[f'{limit}_limit']}")
    return found


def sample(rows: Iterable[Row]) -> list[Row]:
    """The rows of the smallest case of every kernel: a check of the table that takes seconds."""
    smallest: dict[tuple[str, str], Row] = {}
    for row in rows:
        smallest.setdefault((row["kernel"], row["target"]), row)
    return list(smallest.values())


def run(
    targets: Iterable[str] | None = None,
    ops: Iterable[str] | None = None,
    *,
    known: Iterable[Row] = (),
    only: Iterable[str] | None = None,
    jobs: int = 0,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """One row for each kernel, configuration and target.

    Args:
        targets: Names in `TARGETS`; all when ``None``.
        ops: Op names; all when ``None``.
        known: Rows made before with the same `versions`; those whose source and configuration are unchanged are taken.
        only: Keys of the rows wanted; all when ``None``.
        jobs: Processes; 0 takes one a processor, 1 compiles in this process.
        on_row: Called with every row as it is finished.

    Raises:
        UnsupportedError: A target is unknown, or this process interprets Triton kernels.
    """
    names = list(TARGETS) if targets is None else list(targets)
    for name in names:
        if name not in TARGETS:
            cure = nearest(name, TARGETS, "Leave targets out for all of them.")
            raise UnsupportedError(
                "triton_static", "target", expected=f"one of {list(TARGETS)}", got=repr(name), hint=cure
            )
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise UnsupportedError(
            "triton_static",
            "this process interprets Triton kernels",
            expected="a process that compiles",
            got="TRITON_INTERPRET=1",
            hint="Run it again without TRITON_INTERPRET in the environment.",
        )
    before, rows = {row["key"]: row for row in known}, {}
    for name in names:
        for op, case in collect(name):
            if (ops is None or op in set(ops)) and (only is None or _key(case, name) in set(only)):
                row = describe(op, case, name)
                # What is counted and not measured may have changed since.
                old = before.get(row["key"], {})
                rows[row["key"]] = row | {field: old[field] for field in _MEASURED if field in old}
    unknown = [(row["target"], key) for key, row in rows.items() if key not in before]
    for row in _all(unknown, jobs or os.cpu_count() or 1):
        rows[row["key"]] = row
        if on_row is not None:
            on_row(row)
    return list(rows.values())


def _all(cases: Sequence[tuple[str, str]], jobs: int) -> Iterable[Row]:
    if jobs == 1 or len(cases) < 2:
        yield from (_measure(*case) for case in cases)
        return
    with ProcessPoolExecutor(min(jobs, len(cases)), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_measure, *case) for case in cases]):
            yield future.result()


def _measure(name: str, key: str) -> Row:
    """The row of one case, found again by its key: a jitted function does not travel between processes."""
    # The default of this flag changes between Triton releases; numerics must not.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    op, case = next((op, case) for op, case in collect(name) if _key(case, name) == key)
    row = describe(op, case, name)
    try:
        return row | compile_case(case, name)
    except Exception as error:  # the compiler raises many types; each becomes a line of the table
        lines = str(error).strip().splitlines()
        return row | {"error": f"{type(error).__name__}: {lines[-1] if lines else ''}"}


def describe(op: str, case: AotCase, name: str) -> Row:
    """The row of a case that is yet to be compiled for target ``name``."""
    flops, moved = work(case.kernel.__name__, case.element, case.size, case.weight)
    blocks = {key: value for key, value in case.constants.items() if key in BLOCKS}
    flags = {key: v for key, v in case.constants.items() if isinstance(v, int) and key not in blocks}
    return {
        "kernel": case.kernel.__name__,
        "target": name,
        "registers": 0,
        "spills": 0,
        "shared_bytes": 0,
        "tensor_columns": 0,
        "op": op,
        "dtype": case.element if case.weight is None else f"{case.element} x {case.weight}",
        "size": case.size,
        "config": " ".join(f"{key}={value}" for key, value in {**blocks, **case.launch}.items()),
        **limits(TARGETS[name], case.launch["num_warps"]),
        "product": "",
        "flops": float(flops),
        "bytes": float(moved),
        "h100_floor_us": round(floor_us(flops, moved, case.element), 3),
        "flags": " ".join(f"{key}={value:d}" for key, value in flags.items()),
        "error": "",
        "key": _key(case, name),
    }


def _key(case: AotCase, name: str) -> str:
    """Digest of all that decides the machine code: source without comments, types, constants, launch, target."""
    facts: Mapping[str, Any] = {
        "source": [_source(module) for module in _modules(case.kernel.fn.__module__)],
        "kernel": case.kernel.__name__,
        "signature": dict(case.signature),
        "constants": {key: str(value) for key, value in case.constants.items()},
        "launch": dict(case.launch),
        "aligned": sorted(case.aligned),
        "target": name,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _modules(name: str) -> list[str]:
    """The module of a kernel and those of the jitted functions that it calls."""
    from triton.runtime.jit import JITFunction

    called = {
        value.fn.__module__
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, JITFunction) and value.fn.__module__ != name
    }
    return sorted({name}.union(*(_modules(module) for module in called)))


@functools.cache
def _source(module: str) -> str:
    text = inspect.getsource(importlib.import_module(module))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    # Comments and blank lines change nothing; an indentation counts by its depth alone.
    kept = [t.string.strip() or str(t.type) for t in tokens if t.type not in (tokenize.COMMENT, tokenize.NL)]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()
