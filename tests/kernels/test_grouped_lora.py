"""grouped_lora and lora_linear: forward and every gradient against float64, on every backend that runs here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import hfadapt_kernels as hk
from hfadapt_kernels import grouped_lora, lora_linear, native
from hfadapt_kernels.grouped_lora.reference import drop_elements
from hfadapt_kernels.testing import (
    assert_as_good_as_eager,
    assert_as_good_as_eager_nearby,
    nan_poisoned,
    rel_error,
    threads,
)

BACKENDS = ["reference"] + (["cpu"] if native.available() else [])
IDS = [1, -1, 0, 3, 1, 3, 0]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with hk.use_backend(request.param):
        yield request.param


def make(ids, tokens, din, out, ranks, dtype=torch.float32, seed=0):
    """x, y, weights a task and scales; the middle of every weight is about 1 / sqrt(fan in)."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape, size=1.0):
        return (torch.randn(shape, generator=g, dtype=torch.float64) * size).to(dtype)

    x, y = randn(len(ids), tokens, din), randn(len(ids), tokens, out)
    a = [randn(r, din, size=din**-0.5) for r in ranks]
    b = [randn(out, r, size=r**-0.5) for r in ranks]
    return x, y, a, b, [0.5 + 0.25 * t for t in range(len(ranks))]


def eager(x, y, a, b, scale, ids, dropout=0.0, seed=None):
    """One row after the other, as one writes it without thinking of speed."""
    x = drop_elements(x, dropout, seed)
    rows = [
        y[i] if t < 0 else y[i] + F.linear(F.linear(x[i], a[t]), b[t]) * scale[t].reshape(()) for i, t in enumerate(ids)
    ]
    return torch.stack(rows)


def run(fn, tensors, dtype, grad):
    """Result and the gradients of all tensors (zeros where a tensor was not used) at ``dtype``."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    out = fn(leaves)
    grads = [None] * len(leaves)
    if out.requires_grad:
        grads = torch.autograd.grad(out, leaves, grad.to(out.dtype), allow_unused=True)
    return [out, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True))]


def check_all(ids, tokens, din, out, ranks, dtype, dropout=0.0, few=False):
    """Forward and every gradient (x, y, a, b, scale) within twice the error of eager; ``few``: few numbers."""
    n = len(ranks)
    x, y, a, b, scale = make(ids, tokens, din, out, ranks, dtype)
    scales = [torch.tensor([s]).to(dtype) for s in scale]
    tensors, grad = [x, y, *a, *b, *scales], torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    seed, batch = torch.tensor([1234567890123]), hk.TaskBatch.from_ids(ids, n)

    def split(leaves):
        return leaves[0], leaves[1], leaves[2 : 2 + n], leaves[2 + n : 2 + 2 * n], leaves[2 + 2 * n :]

    def ours(leaves):
        lx, ly, la, lb, ls = split(leaves)
        return grouped_lora(lx, la, lb, ls, batch, y=ly, dropout=dropout, training=True, seed=seed)

    def naive(leaves):
        return eager(*split(leaves), ids, dropout, seed)

    before = [t.clone() for t in tensors]
    with nan_poisoned():
        got = run(ours, tensors, dtype, grad)
    rough, exact = run(naive, tensors, dtype, grad), run(naive, tensors, torch.float64, grad)
    groups = {"out": [0], "x": [1], "y": [2], "a": range(3, 3 + n), "b": range(3 + n, 3 + 2 * n)}
    for name, part in () if few else groups.items():
        one, two, three = (torch.cat([result[i].flatten() for i in part]) for result in (got, rough, exact))
        assert_as_good_as_eager(one, two, three, name)
    if few:
        assert_as_good_as_eager_nearby(got, lambda leaves: run(naive, leaves, leaves[0].dtype, grad), tensors, groups)
    # One number a task, where eager may be exact by luck: compared with the size of the terms that are summed.
    size = (grad.double() * (exact[0] - y.double())).abs().sum()
    if few:
        largest = max(p.double().norm() * q.double().norm() for p, q in zip(a, b, strict=True))
        size = grad.double().norm() * x.double().norm() * largest
    for one, three in zip(got[-n:], exact[-n:], strict=True):
        assert (one.double() - three).abs() <= 4 * torch.finfo(dtype).eps * size
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("ids", "tokens", "din", "out", "ranks"),
    [
        (IDS, 5, 48, 96, [8, 8, 8, 8]),
        (IDS, 3, 37, 53, [1, 3, 24, 5]),
        ([0], 1, 1, 1, [1]),
        ([0, 0, 0], 7, 64, 64, [16]),
        ([2, 1, 0], 2, 100, 20, [64, 8, 7]),
        ([3, 0, -1, 2, 2, 1] * 9, 1, 130, 70, [8, 16, 4, 40]),
    ],
    ids=["mixed", "odd", "ones", "uniform", "one-row-a-task", "many-rows"],
)
def test_result_and_every_gradient_are_as_good_as_eager(backend, dtype, ids, tokens, din, out, ranks):
    check_all(ids, tokens, din, out, ranks, dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_dropout_is_the_same_mask_forward_backward_and_on_every_backend(backend, dtype):
    check_all(IDS, 4, 40, 24, [8, 3, 8, 16], dtype, dropout=0.4)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape_is_as_good_as_eager(data):
    n = data.draw(st.integers(1, 4))
    ids = data.draw(st.lists(st.integers(-1, n - 1), min_size=1, max_size=9))
    size = st.integers(1, 70)
    shape = [data.draw(st.integers(1, 9)), data.draw(size), data.draw(size)]
    ranks = data.draw(st.lists(st.integers(1, 33), min_size=n, max_size=n))
    for name in BACKENDS:
        with hk.use_backend(name):
            check_all(ids, *shape, ranks, torch.float32, few=True)


def test_a_gradient_of_one_number_that_nearly_cancels_is_as_good_as_eager(backend):
    check_all([1], 1, 1, 55, [1, 6], torch.float32, few=True)


def test_rows_without_a_task_keep_the_base_bit_for_bit(backend):
    x, y, a, b, s = make([-1, 0, -1], 3, 20, 30, [4])
    y[0, 0, 0] = -0.0
    batch = hk.TaskBatch.from_ids([-1, 0, -1], 1)
    out = grouped_lora(x, a, b, s, batch, y=y)
    assert torch.equal(out[[0, 2]].view(torch.int32), y[[0, 2]].view(torch.int32))
    assert torch.equal(grouped_lora(x, a, b, s, batch)[[0, 2]], torch.zeros(2, 3, 30))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=["no-rows", "no-tokens"])
def test_empty_input_gives_empty_output_and_zero_gradients(backend, shape):
    x = torch.randn(*shape, 8, requires_grad=True)
    a, b = [torch.randn(2, 8, requires_grad=True)], [torch.randn(6, 2, requires_grad=True)]
    out = grouped_lora(x, a, b, 1.0, hk.TaskBatch.from_ids([0] * shape[0], 1))
    assert out.shape == (*shape, 6)
    if out.requires_grad:
        out.sum().backward()
        assert x.grad is None or x.grad.shape == x.shape
        assert a[0].grad is None or not a[0].grad.any()


def test_a_task_without_rows_gets_no_gradient(backend):
    x, y, a, b, s = make([0, 2], 2, 8, 8, [2, 2, 2])
    leaves = [w.requires_grad_() for w in (*a, *b)]
    grouped_lora(x, a, b, s, hk.TaskBatch.from_ids([0, 2], 3), y=y).sum().backward()
    assert [w.grad is None for w in leaves] == [False, True, False] * 2


def test_weights_and_input_may_be_views_of_any_stride(backend):
    x, y, a, b, s = make(IDS, 5, 24, 16, [4, 8, 4, 4])
    batch = hk.TaskBatch.from_ids(IDS, 4)
    wide_x, wide_y = torch.randn(7, 5, 2, 48), torch.randn(7, 5, 40)
    wide_x[..., 0, ::2], wide_y[..., 8:24] = x, y
    fused = [torch.randn(40, w.shape[1]) for w in b]
    for whole, part in zip(fused, b, strict=True):
        whole[8:24] = part
    transposed = [w.t().contiguous().t() for w in a]
    views = [wide_x[..., 0, ::2], wide_y[..., 8:24], *transposed, *(w[8:24] for w in fused)]
    grad = torch.randn(16, 7, 5).permute(1, 2, 0)

    def fn(leaves):
        return grouped_lora(leaves[0], leaves[2:6], leaves[6:], s, batch, y=leaves[1])

    plain = run(fn, [x, y, *a, *b], torch.float32, grad.contiguous())
    strided = [view.detach().requires_grad_() for view in views]
    out = fn(strided)
    found = [out, *torch.autograd.grad(out, strided, grad, allow_unused=True)]
    for got, want in zip(found, plain, strict=True):
        torch.testing.assert_close(torch.zeros_like(want) if got is None else got, want, atol=2e-6, rtol=2e-5)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the C++ library")
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("rank", [3, 8, 16, 64])
def test_a_row_does_not_depend_on_its_neighbours(dtype, rank):
    ids = [0, 1, 0, 2, -1, 0, 2, 1]
    x, y, a, b, s = make(ids, 5, 70, 90, [rank] * 3, dtype)
    with hk.use_backend("cpu"):
        mixed = grouped_lora(x, a, b, s, hk.TaskBatch.from_ids(ids, 3), y=y)
        for row, task in enumerate(ids):
            if task >= 0:
                one = slice(row, row + 1)
                alone = grouped_lora(
                    x[one], a[task : task + 1], b[task : task + 1], s[task], hk.TaskBatch.single(1), y=y[one]
                )
                assert torch.equal(mixed[one], alone)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_same_bits_twice_and_with_one_and_two_threads(backend, dtype):
    x, y, a, b, s = make(IDS * 4, 9, 96, 64, [8, 16, 8, 33], dtype)
    batch, grad = hk.TaskBatch.from_ids(IDS * 4, 4), torch.randn(28, 9, 64).to(dtype)

    def fn(leaves):
        return grouped_lora(leaves[0], leaves[2:6], leaves[6:], s, batch, y=leaves[1])

    def once(count):
        with threads(count):
            return run(fn, [x, y, *a, *b], dtype, grad)

    first = once(1)
    counts = [1, 2] if backend == "cpu" else [1]
    for other in map(once, counts):
        assert all(torch.equal(p, q) for p, q in zip(first, other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lora_linear_on_a_packed_base_equals_the_plain_one_with_and_without_gradients(backend, dtype):
    ids = [1, -1, 0, 3, 1, 2, 0]
    x, _, a, b, scale = make(ids, 5, 48, 40, [8, 3, 40, 5], dtype)
    weight, bias, batch = torch.randn(40, 48).to(dtype), torch.randn(40).to(dtype), hk.TaskBatch.from_ids(ids, 4)
    packed, bits = hk.PackedLinear(weight, str(dtype).removeprefix("torch.")), torch.finfo(dtype).eps
    leaves = [t.requires_grad_() for t in (x, *a, *b)]
    with hk.use_backend(backend):
        results = [lora_linear(x, w, bias, a, b, scale, batch) for w in (weight, packed)]
        with torch.no_grad():
            results.append(lora_linear(x, packed, bias, a, b, scale, batch))
    plain, *others = results
    for other in others:
        torch.testing.assert_close(other, plain, rtol=8 * bits, atol=8 * bits * plain.abs().max().item())
    expected, got = (torch.autograd.grad(out.square().sum(), leaves) for out in results[:2])
    for one, two in zip(got, expected, strict=True):
        assert rel_error(one, two) <= 8 * bits


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [0, 3]], ids=str)
def test_only_the_gradients_asked_for_are_computed(backend, wanted):
    x, y, a, b, s = make([0, 1], 3, 8, 6, [2, 4])
    tensors = [x, y, a[1], b[0]]
    for index in wanted:
        tensors[index].requires_grad_()
    grouped_lora(x, a, b, s, hk.TaskBatch.from_ids([0, 1], 2), y=y).sum().backward()
    assert [t.grad is not None for t in tensors] == [i in wanted for i in range(4)]


def test_one_scale_for_all_and_rows_flattened_with_time(backend):
    x, _, a, b, _ = make(IDS, 5, 24, 16, [4, 8, 4, 4])
    batch = hk.TaskBatch.from_ids(IDS, 4)
    whole = grouped_lora(x, a, b, 2.0, batch)
    flat = grouped_lora(x.flatten(0, 1), a, b, [2.0] * 4, batch.expand(5))
    torch.testing.assert_close(flat.view_as(whole), whole)


def test_a_bfloat16_base_with_float32_updates_keeps_its_dtype(backend):
    x, y, a, b, s = make(IDS, 5, 24, 16, [4, 8, 4, 4])
    batch, half = hk.TaskBatch.from_ids(IDS, 4), torch.bfloat16
    out = grouped_lora(x.to(half), a, b, s, batch, y=y.to(half))
    assert out.dtype == half
    assert grouped_lora(x.to(half), a, b, s, batch).dtype == torch.float32


def test_lora_linear_equals_base_plus_update_with_all_gradients(backend):
    x, _, a, b, s = make(IDS, 5, 24, 16, [4, 8, 4, 4])
    batch = hk.TaskBatch.from_ids(IDS, 4)
    tensors = [x, torch.randn(16, 24), torch.randn(16), *a, *b]
    grad = torch.randn(7, 5, 16)

    def fused(leaves):
        return lora_linear(*leaves[:3], leaves[3:7], leaves[7:], s, batch)

    def parts(leaves):
        y = F.linear(*leaves[:3])
        return eager(leaves[0], y, leaves[3:7], leaves[7:], [torch.tensor(v) for v in s], IDS)

    got = run(fused, tensors, torch.float32, grad)
    rough, exact = run(parts, tensors, torch.float32, grad), run(parts, tensors, torch.float64, grad)
    for one, two, three in zip(got, rough, exact, strict=True):
        # The update of lora_linear joins a product by torch, whose own rounding changes with the shape.
        assert_as_good_as_eager(one, two * (1 + 1e-7), three)


def test_autocast_computes_in_the_autocast_dtype(backend):
    x, y, a, b, s = make(IDS, 5, 24, 16, [4, 8, 4, 4])
    batch = hk.TaskBatch.from_ids(IDS, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert grouped_lora(x, a, b, s, batch, y=y).dtype == torch.bfloat16
        assert lora_linear(x, torch.randn(16, 24), None, a, b, s, batch).dtype == torch.bfloat16


def op_arguments(ids=(0, 1, -1), dropout=0.0):
    x, y, a, b, s = make(list(ids), 3, 12, 10, [2, 4])
    leaves = [t.requires_grad_() for t in (x, y, *a, *b)]
    seed = torch.tensor([5]) if dropout else None
    learned = [torch.ones(1, requires_grad=True) for _ in a]
    return leaves[0], leaves[1], leaves[2:4], leaves[4:], learned, s, torch.tensor(ids), dropout, seed


def test_opcheck(backend):
    x, y, *rest = op_arguments(dropout=0.25)
    torch.library.opcheck(torch.ops.hfadapt.grouped_lora.default, (x, y, *rest, True))
    torch.library.opcheck(torch.ops.hfadapt.grouped_lora.default, (x, None, *rest, True))
    weight = torch.randn(10, 12, requires_grad=True)
    torch.library.opcheck(torch.ops.hfadapt.lora_linear.default, (x, weight, None, *rest, True))


def test_compiles_without_graph_breaks(backend):
    x, y, a, b, learned, *_ = op_arguments()

    def fn(x, y, ids):
        batch = hk.TaskBatch.from_ids(ids, 2)
        return grouped_lora(x * 2, a, b, learned, batch, y=y).relu()

    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    for rows in (3, 2):
        args = x[:rows], y[:rows], torch.tensor([0, 1, -1])[:rows]
        got, want = compiled(*args), fn(*args)
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(out.sum(), [x, *a, *b, *learned], allow_unused=True) for out in (got, want)]
        for one, two in zip(*grads, strict=True):
            torch.testing.assert_close(one, torch.zeros_like(one) if two is None else two)


def test_gradient_of_gradient_is_right_on_the_reference_and_refused_elsewhere(backend):
    x, y, a, b, s = make([0, 1], 2, 4, 4, [2, 2], torch.float64 if backend == "reference" else torch.float32)
    leaves = [t.requires_grad_() for t in (x, y, *a, *b)]
    batch = hk.TaskBatch.from_ids([0, 1], 2)

    def fn(x, y, a0, a1, b0, b1):
        return grouped_lora(x, [a0, a1], [b0, b1], s, batch, y=y)

    if backend == "reference":
        assert torch.autograd.gradcheck(fn, leaves)
        assert torch.autograd.gradgradcheck(fn, leaves)
    else:
        (grad,) = torch.autograd.grad(fn(*leaves).square().sum(), [x], create_graph=True)
        with pytest.raises(hk.DoubleBackwardError, match="grouped_lora"):
            grad.sum().backward()


def test_checkpointed_calls_replay_their_dropout(backend):
    x, y, a, b, s = make(IDS, 3, 16, 16, [4] * 4)
    batch, x = hk.TaskBatch.from_ids(IDS, 4), x.requires_grad_()

    def fn(x):
        return grouped_lora(x, a, b, s, batch, y=y, dropout=0.5, training=True)

    grads = []
    for wrap in (False, True):
        torch.manual_seed(0)
        out = torch.utils.checkpoint.checkpoint(fn, x, use_reentrant=False) if wrap else fn(x)
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.randn(4)), r"x: expected a floating-point \[B, \.\.\., Din\]"),
        (dict(x=torch.randn(3, 3, 12)), "batch: expected 3 task ids, one a row of x, got 2"),
        (dict(a=[torch.randn(2, 12)]), "number of tasks: expected one a and one b for each of the batch's 2 tasks"),
        (dict(a=[torch.randn(2, 12), torch.randn(2, 11)]), r"a\[1\]: expected torch.float32 \[R, 12\]"),
        (dict(b=[torch.randn(6, 2), torch.randn(6, 3)]), r"b\[1\]: expected torch.float32 \[6, 2\]"),
        (dict(y=torch.randn(2, 3, 7)), r"y: expected \[2, 3, 6\] on cpu, got torch.float32 \[2, 3, 7\]"),
        (dict(scale=[1.0]), "scale: expected one number, or 2, got 1"),
        (dict(scale=[torch.ones(2), torch.ones(1)]), r"scale\[0\]: expected a number or a tensor of one"),
        (dict(dropout=1.0), "dropout is not a probability"),
    ],
    ids=["rank", "rows", "tasks", "din", "r", "y", "scales", "scale-shape", "dropout"],
)
def test_wrong_arguments_name_op_argument_expected_and_got(change, message):
    arguments = dict(
        x=torch.randn(2, 3, 12),
        a=[torch.randn(2, 12)] * 2,
        b=[torch.randn(6, 2)] * 2,
        scale=1.0,
        batch=hk.TaskBatch.from_ids([0, 1], 2),
    )
    with pytest.raises(hk.KernelError, match=rf"grouped_lora: {message}"):
        grouped_lora(**arguments | change)
