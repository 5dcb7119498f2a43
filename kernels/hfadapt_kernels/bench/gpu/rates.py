"""Part (c): how fast the ops are, as shares of what the card can do, beside what users would run instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import use_backend
from ..cases_grouped_lora import peft_loop, sorted_slices
from ..rivals import compiled
from .calls import OPS, Call, make
from .sizes import Size, Sizes
from .timing import captured, ceilings, milliseconds

__all__ = ["rates"]

Row = dict[str, Any]
Rivals = dict[str, Callable[[], Any]]


def rates(sizes: Sizes, device: str) -> Iterator[Row]:
    """A row an op and size: forward, forward and backward, shares of the ceilings, and the rivals' forward times."""
    most = ceilings(device)
    yield {"op": "ceilings", **most}
    # Where kernels are interpreted there is no graph.
    kinds = [*((size, False) for size in sizes.large), *([(sizes.captured, True)] if device != "cpu" else [])]
    for op in OPS:
        for size, graph in kinds:
            if op in ("adapter_fusion", "pal_attention") and size.tasks > 8:
                continue  # nobody mixes so many
            yield _row(op, size, sizes.dtypes[-1], device, most, graph=graph)
    # The compiler takes long: what it costs must not cost the rows above.
    yield _compiled(sizes.large[0], sizes.dtypes[-1], device)


def _row(op: str, size: Size, dtype: torch.dtype, device: str, most: dict[str, float], *, graph: bool) -> Row:
    call = make(op, size, dtype, device, idle=False)
    batch, found = call.batch(), {}
    with torch.no_grad():
        grad = torch.randn_like(call.run(call.leaves, batch))

    def forward() -> Tensor:
        with torch.no_grad():
            return call.run(call.leaves, batch)

    def both() -> Any:
        return torch.autograd.grad(call.run(call.leaves, batch), call.leaves, grad, allow_unused=True)

    for name, step in (("forward_ms", forward), ("both_ms", both)):
        with use_backend("triton"):
            found[name] = milliseconds(captured(step, device)[0] if graph else step, device)
    seconds = found["forward_ms"] / 1e3
    return {
        "op": op, "size": size.label(), "dtype": str(dtype), "captured": graph, **found,
        "of_bandwidth": call.bytes / seconds / most["bandwidth"], "of_product": call.flops / seconds / most["product"],
        # A rival that reads back or copies cannot be captured; none is.
        "rivals_captured": False, "rivals_ms": _timed(_rivals(op, call, size, forward), device),
    }  # fmt: skip


def _timed(rivals: Rivals, device: str) -> dict[str, Any]:
    times: dict[str, Any] = {}
    for name, rival in rivals.items():
        try:
            with torch.no_grad():
                times[name] = milliseconds(rival, device)
        except (RuntimeError, NotImplementedError) as error:  # what a rival cannot do here is a line of the table
            times[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return times


def _rivals(op: str, call: Call, size: Size, forward: Callable[[], Any]) -> Rivals:
    def eager() -> Any:
        with use_backend("reference"):
            return forward()

    rivals: Rivals = {"eager": eager}
    if op == "grouped_lora":
        rivals |= _lora_rivals(call, size)
    if op == "prefix_attention":
        rivals |= _attention_rivals(call, size)
    return rivals


def _lora_rivals(call: Call, size: Size) -> Rivals:
    x, y = call.leaves[:2]
    a, b = call.leaves[2 : 2 + size.tasks], call.leaves[2 + size.tasks :]
    ids = call.ids.tolist()
    in_order = sorted(ids)
    rivals: Rivals = {
        "peft's loop": lambda: peft_loop(x, y.clone(), a, b, 2.0, ids),
        "sorted slices": lambda: sorted_slices(x, y, a, b, 2.0, in_order),
    }
    if hasattr(F, "grouped_mm"):
        # Rows sorted and weights stacked beforehand: the best case of it.
        down, up = torch.stack([w.t() for w in a]).contiguous(), torch.stack([w.t() for w in b]).contiguous()
        counts = torch.bincount(call.ids, minlength=size.tasks) * size.tokens
        ends, rows = counts.cumsum(0).to(torch.int32), x.detach().reshape(-1, size.width)

        def grouped() -> Tensor:
            low = F.grouped_mm(rows, down, offs=ends)
            return torch.add(y, F.grouped_mm(low, up, offs=ends).view_as(y), alpha=2.0)

        rivals["F.grouped_mm"] = grouped
    return rivals


def _attention_rivals(call: Call, size: Size) -> Rivals:
    q, k, v = call.leaves[:3]
    keys, values = (
        torch.stack([call.leaves[3 + part * size.tasks + task] for task in range(size.tasks)]).detach()
        for part in range(2)
    )

    def joined() -> Tensor:
        real_keys, real_values = (torch.cat([own[call.ids], real], 2) for own, real in ((keys, k), (values, v)))
        return F.scaled_dot_product_attention(q, real_keys, real_values)

    return {
        "attention, prefix concatenated": joined,
        "attention without prefix": lambda: F.scaled_dot_product_attention(q, k, v),
    }


def _compiled(size: Size, dtype: torch.dtype, device: str) -> Row:
    call = make("grouped_lora", size, dtype, device, idle=False)
    x, y = call.leaves[:2]
    a, b = call.leaves[2 : 2 + size.tasks], call.leaves[2 + size.tasks :]
    # Without a card the graph is traced and run as it is, for C++ would be compiled.
    fast = compiled(sorted_slices) if device != "cpu" else torch.compile(sorted_slices, backend="eager")
    ids = sorted(call.ids.tolist())
    times = _timed({"torch.compile of slices": lambda: fast(x, y, a, b, 2.0, ids)}, device)
    return {"op": "grouped_lora", "size": size.label(), "dtype": str(dtype), "rivals_ms": times}
