"""int8 rows by int8 weights: the same bits on every instruction set, in every way, for a row alone; outliers."""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import hfadapt_kernels as hk
from hfadapt_kernels import native
from hfadapt_kernels.errors import BackendError
from hfadapt_kernels.frozen_linear import frozen_linear_reference
from hfadapt_kernels.frozen_linear.int8_dynamic import MOST_INPUTS, outlier_columns, quantised
from hfadapt_kernels.frozen_linear.reference import effective_weight
from hfadapt_kernels.int8_ways import INT8_WAYS, int8_instruction, int8_way, use_int8_way
from hfadapt_kernels.namespace import cpu_ops
from hfadapt_kernels.testing import nan_poisoned, threads

needs_cpp = pytest.mark.skipif(not native.available(), reason="the C++ library is not built")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpp)]
# Every remainder of blocks of rows and outputs, of groups of 4 and 64 inputs, and more inputs than a piece of a panel.
SIZES = [(1, 1, 1), (5, 7, 3), (3, 64, 16), (33, 97, 65), (50, 200, 130), (17, 1601, 40), (9, 3072, 33)]


def with_outliers(outputs, inputs):
    weight = torch.randn(outputs, inputs)
    if inputs >= 64:
        weight[:, [3, inputs - 1]] *= 30
    return weight


def every_way():
    """Each instruction set with each way to multiply that it has here."""
    return [
        pytest.param(number, way, id=f"{isa} {way}", marks=needs_cpp)
        for number, isa in enumerate(native.ISA_NAMES)
        for way in INT8_WAYS
    ]


def entered(stack, number, way):
    if number > cpu_ops.isa(-1):
        pytest.skip(f"this processor has no {native.ISA_NAMES[number]}")
    stack.enter_context(native.use_isa(native.ISA_NAMES[number]))
    try:
        stack.enter_context(use_int8_way(way))
    except BackendError:
        pytest.skip(f"{native.ISA_NAMES[number]} here has no int8 products by {way}")
    assert int8_way() == way


@pytest.fixture
def stack():
    with contextlib.ExitStack() as inner:
        yield inner


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("number", "way"), every_way())
def test_every_instruction_set_gives_the_bits_of_the_reference(number, way, dtype, size, stack):
    torch.manual_seed(0)
    rows, inputs, outputs = size
    x, weight, bias = torch.randn(rows, inputs).to(dtype), with_outliers(outputs, inputs), torch.randn(outputs)
    outliers = outlier_columns(weight)
    assert (outliers is None) == (inputs < 64)
    entered(stack, number, way)
    for given_bias in (None, bias):
        want = frozen_linear_reference(x, weight, given_bias, dtype="int8_dynamic", outliers=outliers)
        with nan_poisoned(), hk.use_backend("cpu"):
            ours = hk.frozen_linear(x, hk.PackedLinear(weight, "int8_dynamic"), given_bias)
        assert ours.dtype == dtype and torch.equal(ours, want)


@pytest.mark.parametrize(("number", "way"), every_way())
def test_sums_of_the_largest_numbers_are_exact(number, way, stack):
    """Where every product is 127 * 127, of one sign or of both: what saturates or wraps on the way shows here."""
    entered(stack, number, way)
    inputs = 4000
    rows = torch.stack([torch.ones(inputs), -torch.ones(inputs), torch.tensor([1.0, -1.0]).repeat(inputs // 2)])
    packed = hk.PackedLinear(rows.clone(), "int8_dynamic")
    with hk.use_backend("cpu"):
        ours = hk.frozen_linear(rows, packed)
    scale = torch.tensor(1.0) / 127.0
    assert torch.equal(ours, (rows.double() @ rows.double().t() * 127**2).float() * (scale * scale))


@needs_cpp
def test_what_runs_has_a_name_and_another_way_is_refused_by_name():
    assert int8_way() in INT8_WAYS and int8_instruction() in ("vpmaddwd", "vpdpbusd", "tdpbssd", "plain C++")
    with native.use_isa("generic"):
        assert (int8_way(), int8_instruction()) == ("pairs", "plain C++")
        with use_int8_way("bytes"):
            assert int8_way() == "bytes"
        assert int8_way() == "pairs"
        with pytest.raises(BackendError, match=r"expected one of \['pairs', 'bytes'\].*'tiles'"), use_int8_way("tiles"):
            pass


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [130, 1003], ids=["few rows", "whole blocks"])
def test_the_same_bits_with_two_threads_and_for_a_row_alone(backend, rows):
    torch.manual_seed(3)
    x, packed = torch.randn(rows, 70), hk.PackedLinear(with_outliers(90, 70), "int8_dynamic")
    assert backend == "reference" or packed._outliers.tolist() == [3, 69]
    with nan_poisoned(), hk.use_backend(backend):
        with threads(1):
            one = hk.frozen_linear(x, packed)
        with threads(2):
            assert torch.equal(hk.frozen_linear(x, packed), one)
        for row in (57, rows - 1):
            assert torch.equal(hk.frozen_linear(x[row : row + 1], packed), one[row : row + 1])
        assert torch.equal(hk.frozen_linear(x.view(rows, 1, 70), packed).view(rows, -1), one)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_any_magnitude_leave_their_neighbours_alone(backend):
    torch.manual_seed(5)
    plain, weight = torch.randn(9, 70), with_outliers(66, 70)
    odd = plain.clone()
    odd[1, 5], odd[2, 0], odd[3, 5], odd[8, 3] = float("inf"), float("nan"), 3e38, float("nan")
    odd[4] *= 1e-30
    odd[5] *= 1e-44
    odd[6] = 0.0
    with hk.use_backend(backend):
        packed = hk.PackedLinear(weight, "int8_dynamic")
        ours, alone = hk.frozen_linear(odd, packed), hk.frozen_linear(plain, packed)
    # The last holds NaN where the column is an outlier, which never is rounded.
    assert ours[[1, 2, 8]].isnan().all()
    exact = odd.double() @ weight.double().t()
    assert (ours[4] - exact[4]).norm() <= 0.02 * exact[4].norm() and (ours[6] == 0).all()
    assert (ours[5] - exact[5]).abs().max() <= 70 * 2.0**-100
    large = exact[3].abs() < 3e38
    assert ((ours[3] - exact[3]).abs() / exact[3].abs())[large].median() < 0.05
    assert torch.equal(ours[[0, 7]], alone[[0, 7]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", [True, False])
def test_the_gradient_is_that_of_the_rounded_weight(backend, keep):
    """Straight-through: as if x had not been rounded. In float64, with finite differences of that product."""
    torch.manual_seed(1)
    x, weight = torch.randn(6, 70, requires_grad=True), with_outliers(20, 70)
    bias, grad = torch.randn(20, requires_grad=True), torch.randn(6, 20)
    outliers = outlier_columns(weight) if keep else None
    w = effective_weight(weight.double(), "int8_dynamic", outliers)
    with hk.use_backend(backend):
        packed = hk.PackedLinear(weight, "int8_dynamic", keep_outliers=keep)
        dx, db = torch.autograd.grad(hk.frozen_linear(x, packed, bias, activation="relu"), (x, bias), grad)
        with torch.no_grad():
            on = (hk.frozen_linear(x, packed, bias) > 0).double()
    exact = x.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: F.linear(t, w, bias.detach().double()), (exact,))
    (want,) = torch.autograd.grad(F.linear(exact, w), exact, grad.double() * on)
    torch.testing.assert_close(
        dx.double(), want, rtol=1e-2 if native.isa() in ("avx512bf16", "amx") else 1e-5, atol=1e-4
    )
    torch.testing.assert_close(db.double(), (grad.double() * on).sum(0))
    options = {"dtype": "int8_dynamic", "outliers": outliers, "activation": "relu"}
    again = torch.autograd.grad(frozen_linear_reference(x, weight, bias, **options), (x, bias), grad)
    torch.testing.assert_close(again, (want.float(), db), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_is_near_the_exact_one_and_training_gives_the_bits_of_evaluation(backend):
    torch.manual_seed(2)
    x, weight, bias = torch.randn(40, 256), torch.randn(96, 256), torch.randn(96)
    exact = x.double() @ weight.double().t() + bias
    with hk.use_backend(backend):
        packed = hk.PackedLinear(weight, "int8_dynamic")
        with torch.no_grad():
            ours = hk.frozen_linear(x, packed, bias)
        trained = hk.frozen_linear(x.clone().requires_grad_(), packed, bias)
    # Two roundings to about 1/127 of the largest of 256 normal numbers, an error of 0.29 of a step each.
    assert (ours - exact).square().mean().sqrt() < 0.015 * exact.square().mean().sqrt()
    assert torch.equal(trained, ours)


def test_outlier_columns_are_those_far_above_the_median_and_few():
    torch.manual_seed(6)
    weight = torch.randn(64, 128)
    assert outlier_columns(weight) is None
    weight[:, 5] *= 3.5
    assert outlier_columns(weight) is None
    weight[:, [100, 7]] *= 5.0
    assert outlier_columns(weight).tolist() == [7, 100]
    weight[:, 20:30] *= 2.0 ** torch.arange(4, 14)
    assert outlier_columns(weight).tolist() == [26, 27, 28, 29], "of 32 columns one, the largest"
    assert outlier_columns(torch.zeros(4, 64)) is None and outlier_columns(torch.randn(4, 8)) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_outliers_kept_in_float32_save_the_accuracy_of_all_others(backend):
    torch.manual_seed(7)
    x, weight = torch.randn(50, 128), torch.randn(64, 128)
    weight[:, 9] *= 300
    exact = x.double() @ weight.double().t()
    with hk.use_backend(backend):
        kept, rounded = (
            (hk.frozen_linear(x, hk.PackedLinear(weight, "int8_dynamic", keep_outliers=keep)) - exact).norm()
            for keep in (True, False)
        )
    assert kept < 0.05 * rounded


@needs_cpp
def test_packed_for_cpp_it_takes_a_quarter_of_the_weight_and_what_is_kept():
    weight = torch.randn(128, 256)
    assert hk.PackedLinear(weight, "int8_dynamic").nbytes == 128 * 256 + 4 * 128
    weight[:, 3] *= 40
    assert hk.PackedLinear(weight, "int8_dynamic").nbytes == 128 * 256 + 4 * 128 + 4 * 128


def test_copies_carry_what_was_asked_for_and_the_same_bits():
    weight, x = with_outliers(20, 70), torch.randn(4, 70)
    packed = hk.PackedLinear.pack(weight, "int8_dynamic", keep_outliers=False)
    for other in (pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
        assert (other.dtype, other.keep_outliers) == ("int8_dynamic", False)
        assert torch.equal(hk.frozen_linear(x, other), hk.frozen_linear(x, packed))
    assert not torch.equal(hk.frozen_linear(x, hk.PackedLinear(weight, "int8_dynamic")), hk.frozen_linear(x, packed))
    assert packed.unpack() is weight


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_compile_and_autocast(backend):
    torch.manual_seed(2)
    x, weight = torch.randn(3, 4, 70, requires_grad=True), with_outliers(6, 70)
    packed = hk.PackedLinear(weight, "int8_dynamic")
    with hk.use_backend(backend):
        packed.prepare(backward=True)
        args = (x, weight, packed._panels, packed._panels_t, packed._scale, torch.randn(6), packed.kind, 0)
        torch.library.opcheck(torch.ops.hfadapt.frozen_linear.default, (*args, packed._outliers))
        compiled = torch.compile(lambda t: hk.frozen_linear(t, packed), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), hk.frozen_linear(x, packed))
        (ours,), (eager,) = (
            torch.autograd.grad(f(x).sum(), x) for f in (compiled, lambda t: hk.frozen_linear(t, packed))
        )
        assert torch.equal(ours, eager)
        with torch.autocast("cpu", torch.bfloat16):
            assert hk.frozen_linear(x, packed).dtype == torch.bfloat16


@needs_cpp
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 60), inputs=st.integers(1, 150), outputs=st.integers(1, 80), data=st.randoms())
def test_any_shape_gives_the_bits_of_the_reference(rows, inputs, outputs, data):
    make = torch.Generator().manual_seed(data.getrandbits(32))
    x, weight = torch.randn(rows, inputs, generator=make), torch.randn(outputs, inputs, generator=make)
    with nan_poisoned(), hk.use_backend("cpu"):
        out = hk.frozen_linear(x, hk.PackedLinear(weight, "int8_dynamic"))
    assert torch.equal(out, frozen_linear_reference(x, weight, dtype="int8_dynamic", outliers=outlier_columns(weight)))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e-44], ids=str)
def test_weights_that_are_no_numbers_stay_in_their_output(weight):
    torch.manual_seed(8)
    w, x = torch.randn(5, 40), torch.randn(3, 40)
    plain = hk.frozen_linear(x, hk.PackedLinear(w, "int8_dynamic"))
    w[2] = torch.full((40,), weight)
    odd = hk.frozen_linear(x, hk.PackedLinear(w, "int8_dynamic"))
    assert torch.equal(odd[:, [0, 1, 3, 4]], plain[:, [0, 1, 3, 4]])
    assert (odd[:, 2].abs() < 1e-40).all() if weight < 1 else not odd[:, 2].isfinite().any()


def test_more_inputs_than_int32_can_sum_are_refused():
    assert MOST_INPUTS * 127**2 < 2**31 <= (MOST_INPUTS + 1) * 127**2
    with pytest.raises(hk.UnsupportedError, match=f"expected at most {MOST_INPUTS} inputs.*Pack it as 'int8'"):
        hk.PackedLinear(torch.empty(1, MOST_INPUTS + 1), "int8_dynamic")


def test_the_int8_numbers_are_those_of_weights_alone():
    weight = torch.randn(7, 50)
    q, scale = quantised(weight, None)
    assert q.dtype == torch.int8 and q.abs().amax(1).eq(127).all()
    torch.testing.assert_close(q * scale[:, None], effective_weight(weight, "int8"))
