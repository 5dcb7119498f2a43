"""Milliseconds of a call on a card, by events, or in the interpreter, by the clock; and calls captured in a graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["captured", "ceilings", "milliseconds"]

_BUDGET_MS = 120.0


def milliseconds(call: Callable[[], Any], device: str) -> float:
    """The median of as many runs as a tenth of a second holds, five at least; one run where kernels are interpreted."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    samples: list[float] = []
    while len(samples) < 5 or (sum(samples) < _BUDGET_MS and len(samples) < 200):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end))
    return statistics.median(samples)


def captured(call: Callable[[], Any], device: str) -> tuple[Callable[[], Any], Any]:
    """A replay of ``call`` from a CUDA graph, and the result that each replay writes anew."""
    if device == "cpu":
        result = [call()]

        def again() -> None:
            result[0] = call()

        return again, lambda: result[0]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    return graph.replay, lambda: kept


def ceilings(device: str) -> dict[str, float]:
    """Bytes a second of a copy (read plus written) and operations a second of torch's largest product."""
    numbers, width = (1 << 28, 8192) if device != "cpu" else (1 << 12, 32)
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    a = torch.randn(width, width, device=device).bfloat16()
    copy, product = milliseconds(lambda: target.copy_(source), device), milliseconds(lambda: a @ a, device)
    return {"bandwidth": 8e3 * numbers / copy, "product": 2e3 * width**3 / product}
