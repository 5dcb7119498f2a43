"""Runs cases, each allocator in a process of its own, and returns rows ready for JSON."""

from __future__ import annotations

import fnmatch
import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import native
from .case import Case
from .harness import Timing, measure_floor, time_together

__all__ = ["ALLOCATORS", "all_cases", "matches", "run_here", "run_ops"]

# glibc gives large blocks back to the kernel by default, and every fresh tensor then faults its pages in again.
# The first keeps them; both are reported because ratios differ.
ALLOCATORS: dict[str, dict[str, str]] = {
    "warm": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "67108864"},
    "default": {},
}


def all_cases() -> list[Case]:
    """The cases of every ``cases_<op>`` module of this package."""
    name = __name__.rpartition(".")[0]
    package = importlib.import_module(name)
    found: list[Case] = []
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        if module.startswith("cases_"):
            found += importlib.import_module(f"{name}.{module}").cases()
    return found


def matches(case: Case, pattern: str) -> bool:
    """Whether a pattern names the case's op or, with ``*`` for anything, a part of the case's name."""
    return pattern == case.op or fnmatch.fnmatch(case.name, f"*{pattern}*")


def _row(case: Case, rival: str, times: dict[str, Timing], floor_ms: float, extra: dict[str, Any]) -> dict[str, Any]:
    ours, theirs = times["ours"], times[rival]
    return {
        "case": case.name,
        "op": case.op,
        "rival": rival,
        "median_ms": round(ours.median, 4),
        "rival_median_ms": round(theirs.median, 4),
        "ratio": round(theirs.median / ours.median, 3),
        "goal": case.goals.get(rival),
        "floor_fraction": round(floor_ms / ours.median, 3),
        "floor_ms": round(floor_ms, 4),
        "spread_ms": [round(ours.low, 4), round(ours.high, 4)],
        "rival_spread_ms": [round(theirs.low, 4), round(theirs.high, 4)],
        "clean_samples": [ours.clean, theirs.clean],
        **extra,
    }


def run_here(
    patterns: Sequence[str] = (),
    *,
    seconds: float = 2.0,
    threads: int = 2,
    allocator: str = "default",
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Run the cases whose name or op matches one of the patterns (all without patterns) in this process."""
    torch.set_num_threads(threads)
    floor = measure_floor()
    rows = []
    for case in all_cases():
        if patterns and not any(matches(case, pattern) for pattern in patterns):
            continue
        torch.manual_seed(0)
        work = case.build()
        times = time_together({"ours": work.ours, **work.rivals}, seconds=seconds)
        floor_ms = 1e3 * max(work.flops / floor[work.dtype], work.bytes / floor["bandwidth"])
        extra = {"dtype": work.dtype, "shape": dict(work.shape), "threads": threads, "allocator": allocator}
        extra |= {"flops": work.flops, "bytes": work.bytes}
        for rival in work.rivals:
            rows.append(_row(case, rival, times, floor_ms, extra))
            if on_row is not None:
                on_row(rows[-1])
        del work
    return rows


def describe_device() -> dict[str, Any]:
    """Processor, instruction set in use, threads of the machine and versions."""
    name = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "isa": native.isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def run_ops(
    patterns: Sequence[str] = (),
    *,
    seconds: float = 2.0,
    threads: int = 2,
    allocators: Sequence[str] = ("warm", "default"),
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure the ops; ``{"device": {...}, "rows": [...]}``.

    Args:
        patterns: Ops or parts of case names; all cases without any.
        seconds: Sampling time a case.
        threads: Threads of torch's pool.
        allocators: Which of `ALLOCATORS` to run under, each in its own process.
        on_row: Called with each row as it arrives, for progress.

    Raises:
        RuntimeError: A measuring process failed; its last output lines are in the message.
    """
    rows: list[dict[str, Any]] = []
    for allocator in allocators:
        command = [sys.executable, "-m", __package__, "--allocator", allocator, "--seconds", str(seconds)]
        command += ["--threads", str(threads), *patterns]
        environment = {**os.environ, **ALLOCATORS[allocator]}
        paths = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]
        paths += [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            for line in process.stdout:
                if line.startswith("{"):
                    rows.append(json.loads(line))
                    if on_row is not None:
                        on_row(rows[-1])
            errors = process.stderr.read()
        if process.returncode != 0:
            tail = "\n".join(errors.strip().splitlines()[-12:])
            raise RuntimeError(f"bench ops: the {allocator} process ended with {process.returncode}:\n{tail}")
    return {"device": describe_device(), "rows": rows}
