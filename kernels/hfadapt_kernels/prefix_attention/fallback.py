"""The reference as a backend of the opaque op: its gradient is torch's own, recomputed from the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import opaque
from .op import OP, empty_gradients, empty_results
from .reference import prefix_attention_reference


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    out, gate, lse = empty_results(args[0])
    got_out, got_gate = prefix_attention_reference(*args)
    # The backward below recomputes everything, so the log-sum-exps are not used.
    return out.copy_(got_out), gate.copy_(got_gate), lse.zero_()


def _backward(grad_out: Tensor, grad_gate: Tensor | None, *args: Any) -> tuple[Any, ...]:
    query, key, value, pk, pv, ids, mask, bias, *options = args[:13]
    need_query, need_key, need_bias, need_prefix = needs = args[-1]
    results = empty_gradients(query, key, pk, pv, bias, needs)
    with opaque.autograd_inside():

        def leaf(tensor: Tensor, needed: bool) -> Tensor:
            return tensor.detach().requires_grad_(needed)

        query, key, value = leaf(query, need_query), leaf(key, need_key), leaf(value, need_key)
        bias = None if bias is None else leaf(bias, need_bias)
        pk, pv = [leaf(p, need_prefix) for p in pk], [leaf(p, need_prefix) for p in pv]
        outputs = prefix_attention_reference(query, key, value, pk, pv, ids, mask, bias, *options)
        pairs = [
            (o, g) for o, g in zip(outputs, (grad_out, grad_gate), strict=True) if g is not None and o.requires_grad
        ]
        inputs = [t for t in (query, key, value, bias, *pk, *pv) if t is not None and t.requires_grad]
        found = torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)
    targets = [t for t in (*results[:4], *results[4], *results[5])]
    wanted = [need_query, need_key, need_key, need_bias] + [need_prefix] * (len(pk) + len(pv))
    gradients = iter(found)
    for target, needed in zip(targets, wanted, strict=True):
        if needed:
            gradient = next(gradients)
            target.zero_() if gradient is None else target.copy_(gradient)
    return results


OP.register("reference", _forward, _backward)
