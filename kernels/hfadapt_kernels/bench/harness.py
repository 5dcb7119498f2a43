"""Times several callables against each other: interleaved, shuffled, in one process, medians of clean samples."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

try:
    import resource
except ImportError:  # Windows has no rusage: every sample counts as clean.
    resource = None  # type: ignore[assignment]

__all__ = ["Timing", "measure_floor", "time_together"]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call.

    Attributes:
        median: Of the clean samples (of all, when fewer than five are clean).
        low: 20th percentile.
        high: 80th percentile.
        clean: Number of samples in which the scheduler did not interrupt the thread.
    """

    median: float
    low: float
    high: float
    clean: int


def _interruptions() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw if resource is not None else 0


def _summary(samples: list[tuple[float, bool]]) -> Timing:
    clean = [ms for ms, undisturbed in samples if undisturbed]
    used = sorted(clean if len(clean) >= 5 else [ms for ms, _ in samples])
    at = [used[min(len(used) - 1, int(q * len(used)))] for q in (0.2, 0.8)]
    return Timing(statistics.median(used), at[0], at[1], len(clean))


def time_together(
    calls: Mapping[str, Callable[[], Any]], *, seconds: float = 2.0, min_samples: int = 7, seed: int = 0
) -> dict[str, Timing]:
    """Time every callable; each round runs all of them once in a fresh random order.

    Args:
        calls: Name to callable.
        seconds: Roughly how long to sample in total.
        min_samples: Rounds at least, however slow they are.
        seed: Of the orders.
    """
    order = random.Random(seed)
    for call in calls.values():
        call()
        call()
    samples: dict[str, list[tuple[float, bool]]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < min_samples or time.perf_counter() < end:
        names = list(calls)
        order.shuffle(names)
        for name in names:
            before = _interruptions()
            start = time.perf_counter()
            calls[name]()
            elapsed = time.perf_counter() - start
            samples[name].append((elapsed * 1e3, _interruptions() == before))
        rounds += 1
    return {name: _summary(found) for name, found in samples.items()}


def measure_floor() -> dict[str, float]:
    """What this machine can do at best: product rates (flop/s) and copy bandwidth (bytes/s read plus written).

    The product rate of a dtype is the better of torch's product and ours on 2048 x 768 by 768 x 768.
    """
    from ..frozen_linear import PackedLinear, frozen_linear

    found: dict[str, float] = {}
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.randn(2048, 768).to(dtype), torch.randn(768, 768).to(dtype)
            packed = PackedLinear(weight, str(dtype).removeprefix("torch."))
            calls = {
                "torch": lambda x=x, weight=weight: torch.nn.functional.linear(x, weight),
                "packed": lambda x=x, packed=packed: frozen_linear(x, packed),
            }
            best = min(timing.low for timing in time_together(calls, seconds=0.5).values())
            found[str(dtype).removeprefix("torch.")] = 2 * 2048 * 768 * 768 / (best * 1e-3)
        source = torch.randn(16 << 20)
        target = torch.empty_like(source)
        timing = time_together({"copy": lambda: target.copy_(source)}, seconds=0.5)["copy"]
        found["bandwidth"] = 2 * source.numel() * 4 / (timing.low * 1e-3)
    return found
