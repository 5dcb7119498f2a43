"""Part (e): the committed launch configurations against their neighbours; the table names the fastest of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from ... import use_backend
from ...grouped_lora import triton as lora
from ...parallel_adapter_norm import triton as norm
from ...prefix_attention import triton as prefix
from ...triton import products
from .calls import make
from .sizes import Sizes
from .timing import milliseconds

__all__ = ["neighbours"]

Row = dict[str, Any]
# Where an op's host side finds the function that gives its blocks and warps.
_PLACES = {
    "parallel_adapter_norm": (norm, "config"),
    "grouped_lora": (lora, "config"),
    "prefix_attention": (prefix, "config"),
    "weight gradients": (products, "_config"),
}
_CHANGES = {
    "committed": {},
    "twice the warps": {"num_warps": 2.0},
    "half the warps": {"num_warps": 0.5},
    "a stage more": {"num_stages": 1.5},
}


def _changed(launch: dict[str, Any], change: dict[str, float]) -> dict[str, Any]:
    return launch | {name: max(1, int(launch[name] * factor + 0.5)) for name, factor in change.items()}


@contextmanager
def _with(place: tuple[Any, str], change: dict[str, float]) -> Iterator[None]:
    before = getattr(*place)
    with mock.patch.object(*place, lambda *args: _changed(before(*args), change)):
        yield


def neighbours(sizes: Sizes, device: str) -> Iterator[Row]:
    """A row an op and rank: milliseconds of each configuration, forward and backward, and the fastest's name."""
    for size in sizes.large[:2]:
        for op, place in _PLACES.items():
            call = make("parallel_adapter_norm" if op == "weight gradients" else op, size, sizes.dtypes[-1], device)
            batch, times = call.batch(), {}

            def step(call: Any = call, batch: Any = batch) -> Any:
                out = call.run(call.leaves, batch)
                return torch.autograd.grad(out, call.leaves, torch.ones_like(out), allow_unused=True)

            # Interpreted, all do the same, slowly.
            for name, change in list(_CHANGES.items())[: None if device == "cuda" else 2]:
                with use_backend("triton"), _with(place, change):
                    times[name] = milliseconds(step, device)
            yield {"op": op, "size": size.label(), "ms": times, "fastest": min(times, key=lambda name: times[name])}
