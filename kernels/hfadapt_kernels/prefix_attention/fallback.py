"""What runs without a compiler: the two parts of the attention beside each other, task by task.

Eager code calls `attend` directly, and torch differentiates it; `forward` and `backward` run where the op itself has to
(``torch.compile``, direct calls).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import opaque
from ..batch import segments_of
from ..calls import takes
from ..dropout import keep_scale
from ..rows import rowwise
from .reference import PREFIX_COLUMN
from .schema import Backward, Forward, Gradients, empty_gradients, empty_results

__all__ = ["attend", "backward", "forward", "real_scores", "shared_product"]


@takes(Forward)
def forward(call: Forward) -> tuple[Tensor, Tensor, Tensor]:
    """See the schema."""
    out, gate, lse = empty_results(call.query)
    got_out, got_gate = attend(call)
    # The backward below recomputes everything, so the log-sum-exps are not used.
    return out.copy_(got_out), gate.copy_(got_gate), lse.zero_()


@takes(Backward)
def backward(call: Backward) -> Gradients:
    """See the schema."""
    query, key, value, pk, pv, _, _, bias, *_ = call.inputs
    need_query, need_key, need_bias, need_prefix = needs = call.needs
    results = empty_gradients(query, key, pk, pv, bias, needs)
    with opaque.autograd_inside():

        def leaf(tensor: Tensor, needed: bool) -> Tensor:
            return tensor.detach().requires_grad_(needed)

        query, key, value = leaf(query, need_query), leaf(key, need_key), leaf(value, need_key)
        bias = None if bias is None else leaf(bias, need_bias)
        pk, pv = [leaf(p, need_prefix) for p in pk], [leaf(p, need_prefix) for p in pv]
        outputs = attend(
            call.inputs._replace(query=query, key=key, value=value, prefix_key=pk, prefix_value=pv, position_bias=bias)
        )
        grads = (call.grad_out, call.grad_gate)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
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


def attend(call: Forward) -> tuple[Tensor, Tensor]:
    """Output and gate as `prefix_attention_reference` has them; a row's bits do not depend on its neighbours."""
    query, key, value, prefix_key, prefix_value, ids, mask, position_bias, causal, scaling, form, dropout, seed = call
    if query.dtype == torch.float16 and query.device.type == "cpu":
        # torch's float16 product on CPU is a hundred times slower than its float32 product.
        pk, pv = [p.float() for p in prefix_key], [p.float() for p in prefix_value]
        wide = call._replace(query=query.float(), key=key.float(), value=value.float(), prefix_key=pk, prefix_value=pv)
        out, gate = attend(wide)
        return out.half(), gate
    batch, heads, tokens, _ = query.shape
    scores = real_scores(query, key, mask, causal, scaling, position_bias)
    out = scores.new_empty(query.shape, dtype=query.dtype)
    gate = scores.new_zeros(query.shape[:-1])
    line = torch.arange(batch * heads * tokens, device=query.device).view(batch, heads, tokens, 1)

    def weigh(probabilities: Tensor, values: Tensor, rows: slice | Tensor, first_column: int) -> Tensor:
        columns = torch.arange(probabilities.shape[-1], device=query.device) + first_column
        keep = keep_scale(seed, line[rows], columns, dropout, probabilities.dtype)
        probabilities = probabilities if keep is None else probabilities * keep
        return shared_product(probabilities.to(values.dtype), values)

    outs, gates, order = [], [], []
    for segment in segments_of([0] * batch if ids is None else ids.tolist(), query.device):
        rows, real, values = segment.rows, scores[segment.rows], value[segment.rows]
        if segment.task < 0 or prefix_key[segment.task].shape[1] == 0:
            e, total = _exponentials(real, _peak(real))
            part = weigh(e / total.clamp_min(1e-30), values, rows, 0)
            share = torch.zeros_like(total)
        else:
            pk, pv = prefix_key[segment.task][None], prefix_value[segment.task][None]
            extra = shared_product(query[rows], pk.transpose(-1, -2).to(query.dtype)).to(real.dtype) * scaling
            peak_real, peak_extra = _peak(real), _peak(extra)
            if form == "softmax":
                peak_real = peak_extra = torch.maximum(peak_real, peak_extra)
            e, sum_e = _exponentials(real, peak_real)
            f, sum_f = _exponentials(extra, peak_extra)
            total = sum_e + sum_f if form == "softmax" else sum_e.clamp_min(1e-30)
            share = sum_f / total if form == "softmax" else torch.zeros_like(total)
            weights = {"softmax": f / total, "no_gating": f / sum_f, "relu": extra.relu()}[form]
            part = weigh(e / total, values, rows, 0) + weigh(weights, pv, rows, PREFIX_COLUMN)
        outs.append(part.to(query.dtype))
        gates.append(share.squeeze(-1))
        order.append(rows)
    return _assemble(out, outs, order), _assemble(gate, gates, order)


def shared_product(rows: Tensor, columns: Tensor) -> Tensor:
    """``[n, H, T, X] @ [n or 1, G, X, S] -> [n, H, T, S]``: the H / G query heads of a group share its columns."""
    n, heads, tokens, _ = rows.shape
    groups, size = columns.shape[1], columns.shape[3]
    folded = rows.reshape(n, groups, heads // groups * tokens, rows.shape[3])
    return rowwise(torch.matmul, folded, columns.expand(n, -1, -1, -1)).reshape(n, heads, tokens, size)


def _exponentials(scores: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    exponentials = rowwise(torch.exp, scores - peak)
    return exponentials, rowwise(lambda one: one.sum(-1, keepdim=True), exponentials)


def _peak(scores: Tensor) -> Tensor:
    """Largest score of each row; finite also where everything is masked or there is no column."""
    lowest = torch.finfo(scores.dtype).min
    if scores.shape[-1] == 0:
        return scores.new_full((*scores.shape[:-1], 1), lowest)
    return scores.detach().amax(-1, keepdim=True).clamp_min(lowest)


def real_scores(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scaling: float, position_bias: Tensor | None
) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = shared_product(query, key.transpose(-1, -2)).to(wide) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if causal:
        queries, keys = scores.shape[-2:]
        # The last query sees every key: query i stands at position keys - queries + i.
        visible = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores


def _assemble(like: Tensor, parts: list[Tensor], order: list[slice | Tensor]) -> Tensor:
    """Put the segments' rows back where they came from."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return torch.zeros_like(like)
    every = torch.arange(like.shape[0], device=like.device)
    back = torch.argsort(torch.cat([every[rows] for rows in order]))
    return torch.cat(parts)[back]
