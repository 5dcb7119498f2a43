"""Small calls of every C++ op with odd sizes, for AddressSanitizer and valgrind (tools/asan_kernels.sh)."""

from __future__ import annotations

import sys

import torch

import hfadapt_kernels as hk
from hfadapt_kernels import native

assert native.available(), native.why_not()


def adapter_norm(dtype: torch.dtype) -> None:
    for rows, tokens, width, inner, ranks, ids in (
        (1, 1, 1, 1, [1], [0]),
        (4, 7, 37, 29, [3, 17, 65], [2, -1, 0, 2]),
        (2, 50, 64, 96, [8, 130], [1, 0]),
    ):
        x, h = torch.randn(rows, tokens, width, dtype=dtype), torch.randn(rows, tokens, inner, dtype=dtype)
        down = [torch.randn(r, inner, dtype=dtype) for r in ranks]
        up = [torch.randn(width, r, dtype=dtype) for r in ranks]
        leaves = [t.requires_grad_() for t in (x, h, *down, *up)]
        batch = hk.TaskBatch.from_ids(ids, len(ranks))
        out = hk.parallel_adapter_norm(x, h, down, up, batch, norm="layer", activation="gelu", residual=x.detach())
        torch.autograd.grad(out.sum(), leaves, allow_unused=True)


def frozen_linear(dtype: torch.dtype) -> None:
    for rows, inputs, outputs in ((1, 1, 1), (33, 37, 65), (5, 96, 130)):
        x, weight = torch.randn(rows, inputs, dtype=dtype, requires_grad=True), torch.randn(outputs, inputs)
        for kind in ("float32", "bfloat16", "int8"):
            out = hk.frozen_linear(x, hk.PackedLinear(weight, kind), torch.randn(outputs))
            torch.autograd.grad(out.sum(), x)


CASES = [adapter_norm, frozen_linear]
one = sys.argv[1:] == ["one"]
best = torch.ops.hfadapt_cpu.isa(-1)
for isa in [native.isa()] if one else native.ISA_NAMES[: best + 1]:
    with native.use_isa(isa), hk.use_backend("cpu"):
        for dtype in (torch.float32, torch.bfloat16):
            for case in CASES:
                case(dtype)
                print(f"ok {isa} {case.__name__} {dtype}", flush=True)
