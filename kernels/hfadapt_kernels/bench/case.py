"""What is measured: one call of ours beside the rivals that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Case", "Workload"]


@dataclass
class Workload:
    """The callables of one case, all on the same tensors.

    Attributes:
        ours: One call of the op (forward, or forward and backward).
        rivals: Name to callable; the first is the one that the goal in the issue names.
        flops: Floating-point operations of one call, counted by hand.
        bytes: Bytes that a perfect implementation moves: every input and output once.
        dtype: ``float32`` or ``bfloat16``; picks the product rate of the floor.
        shape: What is printed and stored with the row.
    """

    ours: Callable[[], Any]
    rivals: Mapping[str, Callable[[], Any]]
    flops: float
    bytes: float
    dtype: str = "float32"
    shape: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Case:
    """A named workload, built only when it is run.

    Attributes:
        name: Unique, for example ``parallel_adapter_norm forward float32 r=64``.
        op: The op's name.
        build: Allocates the tensors and returns the workload.
        goals: Ratio to reach against a rival, by the rival's name; rivals without a goal are reported too.
    """

    name: str
    op: str
    build: Callable[[], Workload]
    goals: Mapping[str, float] = field(default_factory=dict)
