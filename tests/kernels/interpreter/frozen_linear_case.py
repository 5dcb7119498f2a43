"""Runs the Triton kernel of frozen_linear in the interpreter; started by run_cases.py."""

from __future__ import annotations

import torch

import hfadapt_kernels as hk
from hfadapt_kernels.frozen_linear.reference import effective_weight, frozen_linear_reference
from hfadapt_kernels.testing import assert_as_good_as_eager, nan_poisoned

SIZES = [(1, 1, 1), (67, 37, 130)]


def check(size, kind, dtype):
    torch.manual_seed(0)
    rows, inputs, outputs = size
    x, weight, bias = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs), torch.randn(outputs)
    grad, exact_weight = torch.randn(rows, outputs).to(dtype), effective_weight(weight, kind).double()

    def run(linear, dtype):
        leaf = x.detach().to(dtype).requires_grad_()
        out = linear(leaf)
        return out.detach(), torch.autograd.grad(out, leaf, grad.to(dtype))[0]

    def eager(t):
        return torch.nn.functional.linear(t, exact_weight.to(t.dtype), bias.to(t.dtype))

    with nan_poisoned():
        packed = hk.PackedLinear(weight, kind)
        ours = run(lambda t: hk.frozen_linear(t, packed, bias), dtype)
    # bfloat16 and int8 weights multiply bfloat16 numbers, whatever the dtype of x: eager does the same.
    judged = torch.bfloat16 if kind in ("bfloat16", "int8") else dtype
    for name, a, b, c in zip(("result", "gradient"), ours, run(eager, judged), run(eager, torch.float64), strict=True):
        assert a.dtype == dtype
        assert_as_good_as_eager(a.to(judged), b, c, name)
    # Without gradients the activation runs inside of the kernel.
    plain = hk.frozen_linear(x, packed, bias, activation="gelu")
    torch.testing.assert_close(plain, torch.nn.functional.gelu(ours[0]), atol=2e-2, rtol=2e-2)


def check_int8_rows(size, dtype):
    """The bits of the reference: what is rounded, and in which order, is the same."""
    torch.manual_seed(0)
    rows, inputs, outputs = size
    x, weight, bias = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs), torch.randn(outputs)
    if inputs >= 64:
        weight[:, [2, 40]] *= 30
    x[-1, 0], grad = float("nan"), torch.randn(rows, outputs).to(dtype)
    packed = hk.PackedLinear(weight, "int8_dynamic")
    want = frozen_linear_reference(x, weight, bias, dtype="int8_dynamic", outliers=packed._outliers)
    assert (packed._outliers is None) == (inputs < 64)
    with nan_poisoned():
        leaf = x.clone().requires_grad_()
        out = hk.frozen_linear(leaf, packed, bias)
        dx = torch.autograd.grad(out, leaf, grad)[0]
    if dtype == torch.float32:
        assert torch.equal(out.nan_to_num(7.0), want.nan_to_num(7.0))
    torch.testing.assert_close(out, want, equal_nan=True)
    exact = grad.double() @ effective_weight(weight, "int8_dynamic", packed._outliers).double()
    # The gradient is multiplied in bfloat16, as with int8 weights alone.
    assert (dx - exact).norm() < 0.01 * exact.norm()


with hk.use_backend("triton"):
    for dtype in (torch.float32, torch.bfloat16):
        for size in ((1, 1, 1), (67, 37, 30), (9, 130, 70)):
            check_int8_rows(size, dtype)
            print(f"ok {dtype} int8_dynamic {size}", flush=True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for kind in ("float32", "bfloat16", "int8"):
            for size in SIZES:
                if dtype == torch.float16 and (kind != "int8" or size == (1, 1, 1)):
                    continue
                check(size, kind, dtype)
                print(f"ok {dtype} {kind} {size}", flush=True)
