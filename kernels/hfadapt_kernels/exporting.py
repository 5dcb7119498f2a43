"""The ops as plain PyTorch for graphs that leave torch: ONNX knows none of ours.

A graph for other runtimes may not look at the ids of a batch. So every task computes every row, by the op's reference
for rows of one task, and each row takes its own. Nothing here is differentiated, and nothing drops out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .adapter_fusion import schema as fusion_schema
from .adapter_fusion.rank_space import CoreInputs, fusion_core_reference
from .calls import takes
from .grouped_lora import schema as lora_schema
from .grouped_lora.reference import grouped_lora_reference
from .pal_attention import schema as pal_schema
from .pal_attention.reference import projected_attention
from .pal_attention.weights import unflatten
from .parallel_adapter_norm import schema as norm_schema
from .parallel_adapter_norm.checks import NORMS
from .parallel_adapter_norm.reference import adapter_delta, normalise
from .prefix_attention import schema as prefix_schema
from .prefix_attention.fallback import real_scores, shared_product

__all__ = ["decompositions"]

_NORM_NAMES = {code: name for name, code in NORMS.items()}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what stands for each op in inference, by overload, for ``ExportedProgram.run_decompositions``."""
    return {
        lora_schema.forward_op: _grouped_lora,
        lora_schema.linear_op: _lora_linear,
        norm_schema.forward_op: _parallel_adapter_norm,
        pal_schema.forward_op: _pal_attention,
        prefix_schema.forward_op: _prefix_attention,
        fusion_schema.forward_op: _adapter_fusion,
    }


def _each(ids: Tensor | None, without: Tensor, tasks: int, one: Callable[[int], Tensor]) -> Tensor:
    """Return ``one(t)`` in the rows of task t, ``without`` in rows that have none; without ids all rows have task 0."""
    if ids is None:
        return one(0)
    out = without
    for task in range(tasks):
        mine = (ids == task).view(-1, *(1,) * (without.dim() - 1))
        out = torch.where(mine, one(task).to(out.dtype), out)
    return out


def _unsaved(like: Tensor) -> Tensor:
    """What an op keeps for its backward: nothing reads it."""
    return like.new_zeros(0)


@takes(lora_schema.Forward)
def _grouped_lora(call: lora_schema.Forward) -> tuple[Tensor, Tensor]:
    x, y = call.x, call.y
    without = x.new_zeros((*x.shape[:-1], call.b[0].shape[0])) if y is None else y

    def one(task: int) -> Tensor:
        learned = call.learned[task : task + 1]
        pair = (call.a[task : task + 1], call.b[task : task + 1], learned, call.scale[task : task + 1])
        return grouped_lora_reference(x, y, *pair, None, 0.0, None)

    return _each(call.ids, without, len(call.a), one), _unsaved(x)


@takes(lora_schema.LinearForward)
def _lora_linear(call: lora_schema.LinearForward) -> tuple[Tensor, Tensor]:
    return _grouped_lora(*call.update(torch.nn.functional.linear(call.x, call.weight, call.bias)))


@takes(norm_schema.Forward)
def _parallel_adapter_norm(call: norm_schema.Forward) -> tuple[Tensor, ...]:
    base = call.x if call.residual is None else call.x + call.residual

    def one(t: int) -> Tensor:
        bias, out_bias = (own[t] if own else None for own in (call.down_bias, call.up_bias))
        scale = call.scale[t] if call.scale else call.scale_values[t]
        return base + adapter_delta(call.h, call.down[t], call.up[t], bias, out_bias, scale, call.activation, None)

    z = _each(call.ids, base, len(call.down), one)
    norm = _NORM_NAMES[call.norm]
    out = normalise(z, norm, call.norm_weight, call.norm_bias, call.eps, call.norm_offset)
    return out, *(_unsaved(base) for _ in range(4))


@takes(pal_schema.Forward)
def _pal_attention(call: pal_schema.Forward) -> tuple[Tensor, ...]:
    weights = unflatten(call.weights, call.present)

    def one(task: int) -> Tensor:
        return projected_attention(call.x, weights[task], call.mask, call.num_heads, call.causal, call.activation)

    out = _each(call.ids, torch.zeros_like(call.x), len(weights), one)
    return out, *(_unsaved(out) for _ in range(3))


@takes(prefix_schema.Forward)
def _prefix_attention(call: prefix_schema.Forward) -> tuple[Tensor, Tensor, Tensor]:
    real = real_scores(call.query, call.key, call.mask, call.causal, call.scaling, call.position_bias)

    def mixed(scores: Tensor, values: Tensor) -> Tensor:
        return shared_product(_softmax(scores).to(values.dtype), values).to(call.query.dtype)

    def one(task: int) -> Tensor:
        pk, pv = call.prefix_key[task][None], call.prefix_value[task][None]
        extra = shared_product(call.query, pk.transpose(-1, -2).to(call.query.dtype)).to(real.dtype) * call.scaling
        if call.form == "softmax":
            beside = pv.expand(call.value.shape[0], -1, -1, -1).to(call.value.dtype)
            return mixed(torch.cat([extra, real], -1), torch.cat([beside, call.value], -2))
        weights = _softmax(extra) if call.form == "no_gating" else extra.relu()
        return mixed(real, call.value) + shared_product(weights.to(pv.dtype), pv).to(call.query.dtype)

    out = _each(call.ids, mixed(real, call.value), len(call.prefix_key), one)
    return out, out.new_zeros(out.shape[:-1], dtype=real.dtype), _unsaved(out)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis; 0 in rows that may see nothing at all."""
    blind = (scores == float("-inf")).all(-1, keepdim=True)
    return scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)


def _adapter_fusion(*core: Any) -> Sequence[Tensor]:
    return fusion_core_reference(CoreInputs(*core)._replace(dropout=0.0, seed=None))
