"""prefix_attention through Triton: the host side."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..calls import takes
from ..dropout import dropout_threshold
from ..triton.order import task_order
from ..triton.rows import precision
from ..triton.shared import fitting
from ..triton.tables import aligned_all, buffer, distances, task_table
from ..triton.targets import target_of
from .reference import FORMS
from .schema import OP, Backward, Forward, Gradients, empty_gradients, empty_results
from .triton_configs import config, smaller

__all__ = ["backward", "forward", "supports"]


def supports(*, device: str, dtype: torch.dtype, form: str, head_dim: int) -> str | None:
    """Why the Triton kernels cannot serve the call; ``None`` when they can."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no Triton kernel for {dtype}"
    return None if head_dim <= 256 else f"heads of {head_dim} are wider than 256"


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _three(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.stride(0), tensor.stride(1), tensor.stride(2)


class _Call:
    """The arguments of one call as the kernels take them; keeps alive the copies that the table speaks of.

    ``gradients``: where the gradients of the prefixes go, keys and then values, one a task each.
    """

    def __init__(self, args: Forward, gradients: Sequence[list[Tensor]] = ()) -> None:
        query, key, value, pk, pv, ids, mask, bias, causal, scaling, form, dropout, seed = args
        self.query, self.key, self.value = _rows(query), _rows(key), _rows(value)
        self.B, self.H, self.TQ, self.D = query.shape
        self.plane = self.B * self.H * self.TQ
        self.G, self.TK = key.shape[1], key.shape[2]
        device, shape = query.device, (self.B, self.H, self.TQ, self.TK)
        # A kernel that does not read a tensor still takes a pointer.
        nothing = self.ids = task_table(device, (0,) * self.B).view(-1) if ids is None else ids
        self.prefixes = [aligned_all(ps) if ps else [self.query] for ps in (pk, pv)]
        self.lengths = [p.shape[1] for p in pk] or [0]
        self.tasks, self.longest = len(self.lengths), max(self.lengths)
        # Prefixes that a network makes lie elsewhere in each forward.
        fresh = any(not p.is_leaf for p in (*pk, *pv))
        columns = [self.lengths, *map(distances, self.prefixes), *map(distances, gradients)]
        self.table = task_table(device, *columns, fresh=fresh)
        self.pointers = (*(ps[0] for ps in self.prefixes), self.table)
        mask = None if mask is None else mask.expand(shape)
        self.mask = nothing if mask is None else mask.view(torch.uint8) if mask.dtype == torch.bool else mask
        self.bias = nothing if bias is None else bias.expand(shape)
        self.seed = nothing if seed is None else seed
        self.score_strides = (
            *((0,) * 4 if mask is None else mask.stride()),
            *((0,) * 4 if bias is None else self.bias.stride()),
        )
        self.numbers = (self.D, scaling, dropout_threshold(dropout), 1.0 / (1.0 - dropout))
        self.form = FORMS.index(form)
        self.flags = {
            "CAUSAL": causal,
            "MASK": 0 if mask is None else 1 if mask.dtype == torch.bool else 2,
            "BIAS": bias is not None,
            "DROPOUT": seed is not None,
            "PRECISION": precision(query.dtype),
        }
        self.strides = (*_three(self.query), *_three(self.key), *_three(self.value))

    def launch(self, kernel: str) -> dict[str, Any]:
        device, dtype = self.query.device, self.query.dtype
        target = target_of(device)
        launches = [config(kernel, self.D, dtype, target), *smaller(kernel, self.D, dtype, target)]
        return fitting(f"prefix_attention_{kernel}_kernel", device, launches, dtype)


@takes(Forward)
def forward(args: Forward) -> tuple[Tensor, Tensor, Tensor]:
    """See the schema."""
    import triton

    from .triton_kernels import prefix_attention_fwd_kernel

    call = _Call(args)
    out, gate, lse = empty_results(call.query)
    launch = call.launch("fwd")
    if out.numel():
        prefix_attention_fwd_kernel[(triton.cdiv(call.TQ, launch["BM"]), call.B * call.H)](
            call.query, call.key, call.value, *call.pointers, call.ids, call.mask, call.bias, call.seed,
            out, gate, lse, *call.strides, *_three(out), *call.score_strides, call.tasks, call.plane, call.H, call.G,
            call.TQ, call.TK, *call.numbers, FORM=call.form, **call.flags, **launch,
        )  # fmt: skip
    return out, gate, lse


@takes(Backward)
def backward(args: Backward) -> Gradients:
    """See the schema."""
    import triton

    from .triton_backward import (
        prefix_attention_dkv_kernel,
        prefix_attention_dprefix_kernel,
        prefix_attention_dq_kernel,
    )

    grad_out, grad_gate, out, gate, lse, needs = (
        args.grad_out, args.grad_gate, args.out, args.gate, args.lse, args.needs
    )  # fmt: skip
    bias, pk, pv = args.position_bias, args.prefix_key, args.prefix_value
    _, need_key, need_bias, need_prefix = needs
    made = [buffer(args.query, [p.shape for p in ps]) for ps in (pk, pv)] if need_prefix and pk else []
    call = _Call(args.inputs, made)
    grads = empty_gradients(call.query, call.key, pk, pv, bias, [*needs[:3], False])
    if made:
        grads = (*grads[:4], made[0], made[1])
    launch = {kernel: call.launch(kernel) for kernel in ("dq", "dkv", "dprefix")}
    # All four share the kernels' one set of output strides.
    dq, dout, out = torch.empty_like(out), torch.empty_like(out).copy_(grad_out), out
    delta = torch.empty_like(lse)
    grad_scores = delta.new_empty(call.B, call.H, call.TQ, call.TK) if need_bias else delta
    dgate = gate if grad_gate is None else grad_gate.contiguous()
    sizes = (call.H, call.G, call.TQ)
    if out.numel():
        prefix_attention_dq_kernel[(triton.cdiv(call.TQ, launch["dq"]["BM"]), call.B * call.H)](
            call.query, call.key, call.value, *call.pointers, call.ids, call.mask, call.bias, call.seed,
            out, dout, gate, dgate, lse, delta, dq, grad_scores, *call.strides, *_three(out), *call.score_strides,
            call.tasks, call.plane, *sizes, call.TK, *call.numbers, FORM=call.form, **call.flags,
            DGATE=grad_gate is not None, DSCORES=need_bias, **launch["dq"],
        )  # fmt: skip
    if needs[0]:
        grads[0].copy_(dq)
    if need_bias and bias is not None:
        grads[3].copy_(grad_scores.sum_to_size(bias.shape))
    if need_key and grads[1].numel():
        prefix_attention_dkv_kernel[(triton.cdiv(call.TK, launch["dkv"]["BN"]), call.B * call.G)](
            call.query, call.key, call.value, call.mask, call.bias, call.seed, dout, lse, delta, grads[1], grads[2],
            *call.strides, *_three(out), *_three(grads[1]), *call.score_strides, *sizes, call.TK, *call.numbers,
            **call.flags, **launch["dkv"],
        )  # fmt: skip
    if need_prefix and call.longest:
        order = task_order(call.query.device, args.ids, call.tasks, eager=OP.running is not None, rows=call.B)
        flags = {name: call.flags[name] for name in ("DROPOUT", "PRECISION")}
        prefix_attention_dprefix_kernel[(triton.cdiv(call.longest, launch["dprefix"]["BN"]), call.tasks, call.G)](
            call.query, *call.pointers, *order, call.seed, dout, dgate, lse, delta, made[0][0], made[1][0],
            *_three(call.query), *_three(out), call.tasks, call.plane, *sizes, *call.numbers, FORM=call.form,
            DGATE=grad_gate is not None, **flags, **launch["dprefix"],
        )  # fmt: skip
    return grads
