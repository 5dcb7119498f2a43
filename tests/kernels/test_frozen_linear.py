"""frozen_linear and PackedLinear: exactness, gradients, packing and unpacking, every instruction set."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hfadapt_kernels as hk
from hfadapt_kernels import native
from hfadapt_kernels.frozen_linear.reference import effective_weight
from hfadapt_kernels.testing import assert_as_good_as_eager, nan_poisoned, threads

needs_cpp = pytest.mark.skipif(not native.available(), reason="the C++ library is not built")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpp)]
SIZES = [(1, 1, 1), (5, 7, 3), (33, 96, 65), (97, 200, 130), (200, 64, 64)]


@needs_cpp
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("isa", native.ISA_NAMES)
def test_result_and_gradient_are_as_exact_as_eager(isa, dtype, kind, size):
    torch.manual_seed(0)
    if native.ISA_NAMES.index(isa) > torch.ops.hfadapt_cpu.isa(-1):
        pytest.skip(f"this processor has no {isa}")
    rows, inputs, outputs = size
    x, weight, bias = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs), torch.randn(outputs)
    grad = torch.randn(rows, outputs).to(dtype)

    def run(fn, dtype):
        leaf = x.detach().to(dtype).requires_grad_()
        out = fn(leaf)
        return out.detach(), torch.autograd.grad(out, leaf, grad.to(dtype))[0]

    # Panels of bfloat16 and int8 multiply bfloat16 numbers, whatever the dtype of x: eager does the same.
    eager_dtype = torch.bfloat16 if kind in ("bfloat16", "int8") else dtype
    exact_weight = effective_weight(weight, kind).double()
    with native.use_isa(isa), nan_poisoned(), hk.use_backend("cpu"):
        packed = hk.PackedLinear(weight, kind)
        ours = run(lambda t: hk.frozen_linear(t, packed, bias), dtype)

    def linear(t):
        return torch.nn.functional.linear(t, exact_weight.to(t.dtype), bias.to(t.dtype))

    eager, exact = run(linear, eager_dtype), run(linear, torch.float64)
    for name, a, b, c in zip(("result", "gradient"), ours, eager, exact, strict=True):
        assert a.dtype == dtype
        # int8 weights are exact in the packed product; in eager their scale rounds each weight first.
        assert_as_good_as_eager(a.to(eager_dtype), b, c, name)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_unpack_returns_the_weight_bit_for_bit_after_pickle_and_deepcopy(kind):
    weight = torch.randn(17, 9)
    packed = hk.PackedLinear.pack(weight, kind)
    assert packed.unpack() is weight
    for other in (pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
        assert torch.equal(other.unpack(), weight)
        x = torch.randn(4, 9)
        assert torch.equal(hk.frozen_linear(x, other), hk.frozen_linear(x, packed))


@needs_cpp
def test_a_weight_changed_in_place_is_packed_again():
    weight, x = torch.randn(8, 6), torch.randn(3, 6)
    packed = hk.PackedLinear(weight)
    hk.frozen_linear(x, packed)
    weight.mul_(2)
    torch.testing.assert_close(hk.frozen_linear(x, packed), x @ weight.t())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", [None, "gelu", "relu", "silu"])
def test_the_activation_is_applied_with_and_without_gradients(backend, activation):
    torch.manual_seed(1)
    x, weight, bias = torch.randn(2, 5, 12), torch.randn(7, 12), torch.randn(7, requires_grad=True)
    packed = hk.PackedLinear(weight)
    expected = hk.get_activation(activation).fn(torch.nn.functional.linear(x, weight, bias))
    with hk.use_backend(backend):
        with torch.no_grad():
            torch.testing.assert_close(hk.frozen_linear(x, packed, bias, activation=activation), expected)
        out = hk.frozen_linear(x, packed, bias, activation=activation)
    torch.testing.assert_close(out, expected)
    (ours,), (exact,) = (torch.autograd.grad(y.sum(), bias) for y in (out, expected))
    torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_compile_and_autocast(backend):
    torch.manual_seed(2)
    x, weight = torch.randn(3, 4, 10, requires_grad=True), torch.randn(6, 10)
    packed = hk.PackedLinear(weight)
    packed.prepare(backward=True)
    with hk.use_backend(backend):
        args = (x, weight, packed._panels, packed._panels_t, None, torch.randn(6), packed.kind, 0, None)
        torch.library.opcheck(torch.ops.hfadapt.frozen_linear.default, args)
        compiled = torch.compile(lambda t: hk.frozen_linear(t, packed), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), x @ weight.t())
        (grad,) = torch.autograd.grad(compiled(x).sum(), x)
        torch.testing.assert_close(grad, weight.sum(0).expand_as(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert hk.frozen_linear(x, packed).dtype == torch.bfloat16


@needs_cpp
@pytest.mark.parametrize("rows", [130, 1003], ids=["few rows", "whole blocks"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_the_same_bits_with_two_threads_and_for_a_row_alone(kind, rows):
    torch.manual_seed(3)
    x, packed = torch.randn(rows, 40), hk.PackedLinear(torch.randn(90, 40), kind)
    with nan_poisoned(), hk.use_backend("cpu"):
        with threads(1):
            one = hk.frozen_linear(x, packed)
        with threads(2):
            assert torch.equal(hk.frozen_linear(x, packed), one)
        for row in (57, rows - 1):
            assert torch.equal(hk.frozen_linear(x[row : row + 1], packed), one[row : row + 1])


@needs_cpp
@pytest.mark.parametrize("isa", native.ISA_NAMES)
def test_rows_of_any_magnitude_are_those_of_float32_and_leave_their_neighbours_alone(isa):
    if native.ISA_NAMES.index(isa) > torch.ops.hfadapt_cpu.isa(-1):
        pytest.skip(f"this processor has no {isa}")
    torch.manual_seed(5)
    plain, weight = torch.randn(9, 70), torch.randn(66, 70)
    odd = plain.clone()
    odd[1, 3], odd[2, 0], odd[3, 5] = float("inf"), float("nan"), 3e38
    odd[4] *= 1e-37
    odd[5] *= 1e-44
    odd[6] = 0.0
    with native.use_isa(isa), hk.use_backend("cpu"):
        packed = hk.PackedLinear(weight)
        ours, alone = hk.frozen_linear(odd, packed), hk.frozen_linear(plain, packed)
    exact = odd.double() @ weight.double().t()
    expected = exact.float()
    for row in (1, 2, 3):
        torch.testing.assert_close(ours[row], expected[row], equal_nan=True, rtol=1e-5, atol=0)
    for row in (4, 6):
        assert (ours[row] - exact[row]).norm() <= 1e-5 * exact[row].norm()
    # Subnormals: torch's own product has as few digits of them.
    assert (ours[5] - exact[5]).abs().max() <= 70 * 2.0**-149 * 4
    assert torch.equal(ours[[0, 7, 8]], alone[[0, 7, 8]])


@needs_cpp
@pytest.mark.parametrize("size", [1e-30, 1e30, float("inf")], ids=str)
def test_weights_of_any_magnitude_give_float32_results(size):
    torch.manual_seed(6)
    x, weight = torch.randn(20, 12), torch.randn(10, 12)
    weight[3] *= size
    with hk.use_backend("cpu"):
        out = hk.frozen_linear(x, hk.PackedLinear(weight))
    torch.testing.assert_close(out, (x.double() @ weight.double().t()).float(), equal_nan=True, rtol=1e-4, atol=1e-6)


@needs_cpp
def test_a_bfloat16_weight_given_as_float32_is_multiplied_in_bfloat16_bit_for_bit():
    # A bfloat16 model that is packed with the default must not run on the float32 product.
    torch.manual_seed(7)
    x, weight = torch.randn(20, 33).bfloat16(), torch.randn(18, 33).bfloat16()
    given = hk.PackedLinear(weight)
    assert (given.dtype, given.kind) == ("float32", "bfloat16")
    assert torch.equal(hk.frozen_linear(x, given), hk.frozen_linear(x, hk.PackedLinear(weight, "bfloat16")))
    assert hk.PackedLinear(weight.float()).kind == "float32"


@needs_cpp
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 60), inputs=st.integers(1, 80), outputs=st.integers(1, 150))
def test_any_shape_equals_torch(rows, inputs, outputs):
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    with nan_poisoned(), hk.use_backend("cpu"):
        out = hk.frozen_linear(x, hk.PackedLinear(weight))
    torch.testing.assert_close(out, x @ weight.t(), atol=1e-4, rtol=1e-4)


def test_strided_and_half_precision_inputs():
    torch.manual_seed(4)
    packed = hk.PackedLinear(torch.randn(5, 6))
    x = torch.randn(6, 4).t()
    torch.testing.assert_close(hk.frozen_linear(x, packed), x @ packed.weight.t())
    half = hk.frozen_linear(x.half(), hk.PackedLinear(packed.weight.half()))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), x @ packed.weight.t(), atol=2e-2, rtol=2e-2)


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(hk.UnsupportedError, match="dtype: expected one of"):
        hk.PackedLinear(torch.randn(2, 2), "int4")
    with pytest.raises(hk.ShapeError, match="weight: expected"):
        hk.PackedLinear(torch.randn(2, 2, 2))
    packed = hk.PackedLinear(torch.randn(3, 4))
    with pytest.raises(hk.ShapeError, match=r"x: expected last axis 4"):
        hk.frozen_linear(torch.randn(2, 5), packed)
    with pytest.raises(hk.ShapeError, match=r"bias: expected \[3\]"):
        hk.frozen_linear(torch.randn(2, 4), packed, torch.randn(4))
