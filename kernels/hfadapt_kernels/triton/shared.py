"""Shared memory: what a launch takes of it, what a card has, and which committed configuration fits.

A kernel that wants more than a card has is refused by Triton when it is loaded, after it was compiled, in words that
name no op. Here it is refused before, by the figures of `hfadapt bench triton-static`, which compiled it with every
option on. What they do not know (TF32, configurations that a caller tries) Triton refuses, and `named` says it in our
parts.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import SharedMemoryError
from .targets import target_of

__all__ = ["FIGURES", "figures_of", "fitting", "has", "named", "needs"]

#: What `figures_of` made of the committed table.
FIGURES = Path(__file__).with_name("shared_memory.json")
# What triton-static calls the types; float16 is laid out as bfloat16 is.
_ELEMENTS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "bf16", torch.int8: "i8"}
_OPTIONS = ("num_warps", "num_stages")
#: A launch's blocks, as a row of the table names them.
BLOCKS = ("BM", "BN", "BK", "BD", "BR", "BI", "BJ")

Figures = dict[str, dict[str, dict[str, int]]]


class _Lacking(Exception):
    """A kernel takes more shared memory than there is; `named` says in which op."""

    def __init__(self, kernel: str, taken: int, there: int) -> None:
        super().__init__(kernel, taken, there)
        self.kernel, self.taken, self.there = kernel, taken, there


def has(device: torch.device) -> int | None:
    """Bytes of shared memory that a block may have on ``device``; ``None`` where kernels are interpreted."""
    if device.type != "cuda":
        return None
    return _of_card(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _of_card(index: int) -> int:
    from triton.runtime import driver

    active: Any = driver.active
    return active.utils.get_device_properties(index)["max_shared_mem"]


@functools.cache
def _figures() -> Figures:
    return json.loads(FIGURES.read_text("utf-8"))


@functools.cache
def _most(target: str) -> int:
    """What no committed configuration of ``target`` exceeds."""
    return max(taken for kernel in _figures()[target].values() for taken in kernel.values())


def needs(kernel: str, element: str, launch: Mapping[str, Any], target: str) -> int | None:
    """Bytes of shared memory that a launch takes, at most; ``None`` for a configuration that is not committed.

    Args:
        kernel: Its name.
        element: As triton-static names the types: ``bf16``, or ``bf16 x i8`` where a weight has its own.
        launch: The keyword arguments of the launch.
        target: One of `TARGETS`.
    """
    known = _figures()[target].get(kernel, {})
    # Heads narrower than those of the table have its blocks with fewer columns, and take no more.
    columns = ([launch["BD"]] if "BD" in launch else [0]) + [size for size in (64, 128, 256) if "BD" in launch]
    return next((known[text] for size in columns if (text := _text(element, launch, size)) in known), None)


def _text(element: str, launch: Mapping[str, Any], columns: int) -> str:
    blocks = {**launch, "BD": columns} if "BD" in launch else launch
    return " ".join([element, *(f"{name}={value}" for name, value in blocks.items() if name in (*BLOCKS, *_OPTIONS))])


def fitting(
    kernel: str, device: torch.device, launches: Iterable[dict[str, Any]], dtype: torch.dtype,
    weight: torch.dtype | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The first of ``launches`` that ``device`` has the shared memory for; of the last, whether it is known to have.

    Args:
        kernel: Its name.
        device: Where it is to be launched.
        launches: Committed configurations, the one to prefer first.
        dtype: Of the data.
        weight: Of a weight that has its own.

    Raises:
        _Lacking: None fits; `named` makes a `SharedMemoryError` of it.
    """
    launches = list(launches)
    there, target = has(device), target_of(device)
    if there is None or there >= _most(target):
        return launches[0]
    element = _ELEMENTS[dtype] + ("" if weight is None else f" x {_ELEMENTS[weight]}")
    taken = 0
    for launch in launches:
        taken = needs(kernel, element, launch, target) or 0
        if taken <= there:
            return launch
    raise _Lacking(kernel, taken, there)


def named(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of a Triton backend, whose lack of a card's memory is a `SharedMemoryError` of ``op``."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            lacking = _lacking(error)
            if lacking is None:
                raise
            what, taken, there = lacking
            raise SharedMemoryError(
                op,
                f"{what} does not fit this card",
                expected=f"at most {there}",
                got=f"{taken}",
                hint="HFADAPT_BACKEND=reference, or hfadapt_kernels.use_backend('reference'), computes it in plain "
                "PyTorch; bfloat16 takes less than float32.",
            ) from error

    return call


def _lacking(error: Exception) -> tuple[str, int, int] | None:
    if isinstance(error, _Lacking):
        return f"the shared memory of a block of {error.kernel}, in bytes,", error.taken, error.there
    # An error of Triton's is raised where Triton is loaded.
    if "triton" not in sys.modules:
        return None
    from triton import OutOfResources

    if not isinstance(error, OutOfResources):
        return None
    return f"the {error.name} of a block, as Triton counts it,", error.required, error.limit


def figures_of(rows: Iterable[Mapping[str, Any]]) -> Figures:
    """What `needs` reads, from the rows of triton-static: of rows that differ in options alone, the largest."""
    found: Figures = {}
    for row in sorted(rows, key=lambda row: (row["target"], row["kernel"], row["dtype"], row["config"])):
        known = found.setdefault(row["target"], {}).setdefault(row["kernel"], {})
        text = f"{row['dtype']} {row['config']}"
        known[text] = max(known.get(text, 0), row["shared_bytes"])
    return found
