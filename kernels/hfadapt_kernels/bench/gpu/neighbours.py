"""Part (e): the committed launch configurations against their neighbours; the table holds the fastest of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from ... import use_backend
from ...adapter_fusion import triton as fusion
from ...frozen_linear import triton as frozen
from ...grouped_lora import triton as lora
from ...pal_attention import triton as pal
from ...parallel_adapter_norm import triton as norm
from ...prefix_attention import triton as prefix
from ...triton import products
from .calls import make
from .sizes import Sizes
from .timing import milliseconds

__all__ = ["neighbours"]

Row = dict[str, Any]
Place = tuple[Any, str]
# Where an op's host side finds the function that gives a kernel's blocks and warps.
_PLACES: dict[str, Place] = {
    "parallel_adapter_norm": (norm, "config"),
    "grouped_lora": (lora, "config"),
    "prefix_attention": (prefix, "config"),
    "weight gradients": (products, "_config"),
    "adapter_fusion": (fusion, "config"),
    "frozen_linear": (frozen, "config"),
    "pal_attention": (pal, "config"),
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
def _with(place: Place, kernel: tuple[Any, ...], change: dict[str, float]) -> Iterator[None]:
    """One kernel of an op, known by what its configuration hangs on, runs with a neighbour; the others as committed."""
    before = getattr(*place)

    def config(*args: Any) -> dict[str, Any]:
        return _changed(before(*args), change) if args == kernel else before(*args)

    with mock.patch.object(*place, config):
        yield


def _kernels(place: Place, step: Callable[[], Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The configurations that ``step`` asks for, by what they hang on."""
    before, found = getattr(*place), {}

    def config(*args: Any) -> dict[str, Any]:
        found[args] = before(*args)
        return found[args]

    with mock.patch.object(*place, config):
        step()
    return found


def neighbours(sizes: Sizes, device: str) -> Iterator[Row]:
    """A row a kernel and size: milliseconds of a step of its op with each configuration, and the fastest one itself."""
    # Interpreted, all do the same, slowly.
    changes = dict(list(_CHANGES.items())[: None if device == "cuda" else 2])
    for size in sizes.large[:2]:
        for op, place in _PLACES.items():
            if op in ("adapter_fusion", "pal_attention") and size.tasks > 8:
                continue  # nobody mixes so many
            call = make("parallel_adapter_norm" if op == "weight gradients" else op, size, sizes.dtypes[-1], device)
            batch = call.batch()

            def step(call: Any = call, batch: Any = batch) -> Any:
                with use_backend("triton"):
                    out = call.run(call.leaves, batch)
                return torch.autograd.grad(out, call.leaves, torch.ones_like(out), allow_unused=True)

            for kernel, launch in _kernels(place, step).items():
                times = {name: _timed(place, kernel, change, step, device) for name, change in changes.items()}
                ran = [name for name, time in times.items() if isinstance(time, float)]
                fastest = min(ran, key=lambda name, times=times: times[name], default="none")
                yield {
                    "op": op, "kernel": " ".join(map(str, kernel)), "size": size.label(), "ms": times,
                    "fastest": fastest, "launch": _changed(launch, changes.get(fastest, {})),
                }  # fmt: skip


def _timed(place: Place, kernel: tuple[Any, ...], change: dict[str, float], step: Any, device: str) -> float | str:
    try:
        with _with(place, kernel, change):
            return milliseconds(step, device)
    except (ValueError, RuntimeError) as error:  # a neighbour may not fit the card, which the table says
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
