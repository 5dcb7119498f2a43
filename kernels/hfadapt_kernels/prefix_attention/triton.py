"""prefix_attention through Triton: configurations, host side, and the cases for ahead-of-time compilation."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..batch import TaskBatch
from ..dropout import dropout_threshold
from .op import OP, empty_gradients, empty_results
from .reference import FORMS

__all__ = ["aot_cases", "config"]

# (largest head dimension, element bytes) -> queries, keys, warps, stages of a block, forward and backward. Known
# defect: several spill registers (11 of 24 kernels on sm_90: python -m hfadapt_kernels.triton_static --target sm_90);
# they were not compiled for sm_100 and gfx942.
_FORWARD = {(64, 2): (64, 64, 4, 2), (128, 2): (64, 32, 4, 2), (256, 2): (32, 32, 8, 1),
            (64, 4): (32, 32, 4, 1), (128, 4): (16, 32, 4, 1), (256, 4): (16, 16, 8, 1)}  # fmt: skip
_BACKWARD = {(64, 2): (32, 64, 4, 1), (128, 2): (32, 32, 8, 1), (256, 2): (16, 32, 8, 1),
             (64, 4): (16, 32, 4, 1), (128, 4): (16, 16, 4, 1), (256, 4): (16, 16, 8, 1)}  # fmt: skip


def config(dim: int, dtype: torch.dtype, backward: bool) -> dict[str, Any]:
    """Launch configuration for heads of ``dim``."""
    size = min(dtype.itemsize, 4)
    bm, bn, warps, stages = (_BACKWARD if backward else _FORWARD)[64 if dim <= 64 else 128 if dim <= 128 else 256, size]
    block = max(16, 1 << (dim - 1).bit_length())
    return {"BM": bm, "BN": bn, "BD": block, "EVEN": block == dim, "num_warps": warps, "num_stages": stages}


def _supports(*, device: str, dtype: torch.dtype, form: str) -> str | None:
    return None if dtype in (torch.float32, torch.bfloat16, torch.float16) else f"no Triton kernel for {dtype}"


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, at an address that 16 divides: the kernels are told so."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _three(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.stride(0), tensor.stride(1), tensor.stride(2)


class _Call:
    """The arguments of one call as the kernels take them; keeps alive what the pointer tables point to."""

    def __init__(self, query, key, value, pk, pv, ids, mask, bias, causal, scaling, form, dropout, seed):  # type: ignore[no-untyped-def]
        from ..triton_common import pointer_table, precision

        self.query, self.key, self.value = _rows(query), _rows(key), _rows(value)
        self.B, self.H, self.TQ, self.D = query.shape
        self.plane = self.B * self.H * self.TQ
        self.G, self.TK = key.shape[1], key.shape[2]
        device, shape = query.device, (self.B, self.H, self.TQ, self.TK)
        nothing = torch.zeros(1, dtype=torch.int64, device=device)
        self.prefixes = [_aligned(p) for p in (*pk, *pv)]
        tables = [
            pointer_table(ps, device) if pk else nothing for ps in (self.prefixes[: len(pk)], self.prefixes[len(pk) :])
        ]
        lengths = torch.tensor([p.shape[1] for p in pk] or [0], dtype=torch.int32).to(device, non_blocking=True)
        if ids is None:
            ids = torch.zeros(self.B, dtype=torch.int64, device=device)
        self.ids, self.lengths, self.tables, self.tasks = ids, lengths, tables, len(pk)
        self.longest = max((p.shape[1] for p in pk), default=0)
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


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    import triton

    from .triton_kernels import prefix_attention_fwd_kernel

    call = _Call(*args)
    out, gate, lse = empty_results(call.query)
    launch = config(call.D, call.query.dtype, backward=False)
    if out.numel():
        prefix_attention_fwd_kernel[(triton.cdiv(call.TQ, launch["BM"]), call.B * call.H)](
            call.query, call.key, call.value, *call.tables, call.lengths, call.ids, call.mask, call.bias, call.seed,
            out, gate, lse, *call.strides, *_three(out), *call.score_strides, call.plane, call.H, call.G, call.TQ,
            call.TK, *call.numbers, FORM=call.form, **call.flags, **launch,
        )  # fmt: skip
    return out, gate, lse


def _backward(grad_out: Tensor, grad_gate: Tensor | None, *args: Any) -> tuple[Any, ...]:
    import triton

    from ..triton_common import pointer_table
    from .triton_kernels import (
        prefix_attention_dkv_kernel,
        prefix_attention_dprefix_kernel,
        prefix_attention_dq_kernel,
    )

    *inputs, out, gate, lse, needs = args
    call = _Call(*inputs)
    bias, pk, pv = inputs[7], inputs[3], inputs[4]
    _, need_key, need_bias, need_prefix = needs
    grads = empty_gradients(call.query, call.key, pk, pv, bias, needs)
    launch = config(call.D, call.query.dtype, backward=True)
    # All four share the kernels' one set of output strides.
    dq, dout, out = torch.empty_like(out), torch.empty_like(out).copy_(grad_out), out
    delta = torch.empty_like(lse)
    grad_scores = delta.new_empty(call.B, call.H, call.TQ, call.TK) if need_bias else delta
    dgate = gate if grad_gate is None else grad_gate.contiguous()
    sizes = (call.H, call.G, call.TQ)
    if out.numel():
        prefix_attention_dq_kernel[(triton.cdiv(call.TQ, launch["BM"]), call.B * call.H)](
            call.query, call.key, call.value, *call.tables, call.lengths, call.ids, call.mask, call.bias, call.seed,
            out, dout, gate, dgate, lse, delta, dq, grad_scores, *call.strides, *_three(out), *call.score_strides,
            call.plane, *sizes, call.TK, *call.numbers, FORM=call.form, **call.flags, DGATE=grad_gate is not None,
            DSCORES=need_bias, **launch,
        )  # fmt: skip
    if needs[0]:
        grads[0].copy_(dq)
    if need_bias:
        grads[3].copy_(grad_scores.sum_to_size(bias.shape))
    if need_key and grads[1].numel():
        prefix_attention_dkv_kernel[(triton.cdiv(call.TK, launch["BN"]), call.B * call.G)](
            call.query, call.key, call.value, call.mask, call.bias, call.seed, dout, lse, delta, grads[1], grads[2],
            *call.strides, *_three(out), *_three(grads[1]), *call.score_strides, *sizes, call.TK, *call.numbers,
            **call.flags, **launch,
        )  # fmt: skip
    if need_prefix and call.longest:
        order, starts = TaskBatch(call.ids, call.tasks).order()
        results = [pointer_table(gs, call.query.device) for gs in (grads[4], grads[5])]
        flags = {name: call.flags[name] for name in ("DROPOUT", "PRECISION")}
        prefix_attention_dprefix_kernel[(triton.cdiv(call.longest, launch["BN"]), call.tasks, call.G)](
            call.query, *call.tables, call.lengths, order, starts, call.seed, dout, dgate, lse, delta, *results,
            *_three(call.query), *_three(out), call.plane, *sizes, *call.numbers, FORM=call.form,
            DGATE=grad_gate is not None, **flags, **launch,
        )  # fmt: skip
    return grads


def aot_cases() -> list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(kernel, signature, constexprs, options) of every committed configuration, for the resource table."""
    from . import triton_kernels as kernels

    strides = [f"{t}_{axis}" for t in ("q", "k", "v", "o", "dk") for axis in "bht"]
    strides += [f"{t}_{axis}" for t in ("mask", "bias") for axis in "bhqk"]
    common = {name: "i32" for name in (*strides, "H", "G", "TQ", "TK", "D")}
    common |= {
        "scaling": "fp32",
        "keep": "fp32",
        "threshold": "i64",
        "plane": "i64",
        "mask_ptr": "*u8",
        "seed_ptr": "*i64",
    }
    common |= {f"{name}_table": "*i64" for name in ("pk", "pv", "dpk", "dpv")} | {"lengths_ptr": "*i32"}
    common |= {f"{name}_ptr": "*i64" for name in ("ids", "order", "starts")}
    common |= {f"{name}_ptr": "*fp32" for name in ("gate", "dgate", "lse", "delta", "dscores")}
    cases: list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    for dtype, type_ in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        types = common | {f"{n}_ptr": f"*{type_}" for n in ("q", "k", "v", "out", "do", "dq", "dk", "dv", "bias")}
        for dim in (64, 128, 256):
            flags = {"FORM": 0, "CAUSAL": True, "MASK": 1, "BIAS": False, "DROPOUT": False, "PRECISION": "ieee"}
            # The launcher makes strides of 1 constants.
            flags |= {"DGATE": False, "DSCORES": False, "mask_k": 1, "bias_k": 1}
            for kernel in (
                kernels.prefix_attention_fwd_kernel,
                kernels.prefix_attention_dq_kernel,
                kernels.prefix_attention_dkv_kernel,
                kernels.prefix_attention_dprefix_kernel,
            ):
                launch = config(dim, dtype, backward=kernel is not kernels.prefix_attention_fwd_kernel)
                options = {"num_warps": launch.pop("num_warps"), "num_stages": launch.pop("num_stages"), "dim": dim}
                options["aligned"] = [*strides, "D"]
                constants = {name: v for name, v in (flags | launch).items() if name in kernel.arg_names}
                signature = {name: types[name] for name in kernel.arg_names if name not in constants}
                cases.append((kernel, signature, constants, options))
    return cases


OP.register("triton", _forward, _backward, _supports)
