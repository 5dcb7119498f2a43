"""`adapter_fusion`: rank space equals the paper's formula, every gradient on every backend, and what it refuses."""

from __future__ import annotations

import copy
import importlib
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfadapt_kernels import KeptProducts, ShapeError, native, use_backend
from hfadapt_kernels.adapter_fusion import adapter_fusion, adapter_fusion_reference
from hfadapt_kernels.testing import (
    assert_as_good_as_eager,
    assert_as_good_as_eager_nearby,
    leaves,
    nan_poisoned,
    rel_error,
    threads,
)

op_module = importlib.import_module("hfadapt_kernels.adapter_fusion.op")
needs_cpp = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpp)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Case:
    """Random inputs; ``ranks`` has one bottleneck size an adapter."""

    def __init__(self, rows=2, tokens=3, dim=16, ranks=(4, 4), biases=True, dtype=torch.float32, seed=0):
        make = torch.Generator().manual_seed(seed)

        def normal(*shape, size=1.0):
            return (torch.randn(shape, generator=make, dtype=torch.float64) * size).to(dtype)

        self.dtype, self.ranks, self.biases = dtype, ranks, biases
        count = len(ranks)
        self.scale = [0.5 + 0.1 * n for n in range(count)]
        self.tensors = [
            normal(rows, tokens, dim),
            *(normal(rows, tokens, rank).relu() for rank in ranks),
            *(normal(dim, rank, size=rank**-0.5) for rank in ranks),
            *((normal(dim, size=0.3) for _ in ranks) if biases else ()),
            *(normal(dim, dim, size=dim**-0.5) for _ in range(3)),
            *((normal(dim, size=0.3) for _ in range(2)) if biases else ()),
        ]
        self.grad, self.grad_weights = normal(rows, tokens, dim), normal(rows, tokens, count).float()

    def arguments(self, flat):
        count = len(self.ranks)
        hidden, up = flat[1 : 1 + count], flat[1 + count : 1 + 2 * count]
        rest = flat[1 + 2 * count :]
        up_bias, rest = (rest[:count], rest[count:]) if self.biases else (None, rest)
        qw, kw, vw, *vectors = rest
        qb, kb = vectors if self.biases else (None, None)
        return flat[0], hidden, up, up_bias, self.scale, qw, qb, kw, kb, vw

    def kinds(self):
        """What each result and gradient is: those of one kind are judged together."""
        count = len(self.ranks)
        kinds = ["out", "weights", "query", *["hidden"] * count, *["up"] * count]
        kinds += ["up_bias"] * count if self.biases else []
        return [*kinds, "query_weight", "key_weight", "value_weight", "query_bias", "key_bias"]

    def run(self, dtype, *, through_op, **options):
        flat = leaves(self.tensors, dtype)
        if through_op:
            out, weights = adapter_fusion(*self.arguments(flat), return_weights=True, **options)
        else:
            if not options.pop("training", False):
                options.update(dropout=0.0, seed=None)
            out, weights = adapter_fusion_reference(*self.arguments(flat), **options)
        seeds = [self.grad.to(dtype), self.grad_weights.to(weights.dtype)]
        return [out, weights], torch.autograd.grad([out, weights], flat, seeds, allow_unused=True)


def check(make_case, backend, **options):
    """Results and gradients are at most twice as far from float64 as the paper's formula in eager torch.

    Pooled over three draws and over the adapters: the softmax of unscaled scores amplifies a few roundings, so that one
    draw of a few numbers says little about either side.
    """
    pooled = {}
    for seed in range(3):
        case = make_case(seed=seed)
        with use_backend(backend), nan_poisoned():
            outs, grads = case.run(case.dtype, through_op=True, **dict(options))
        eager = case.run(case.dtype, through_op=False, **dict(options))
        exact = case.run(torch.float64, through_op=False, **dict(options))
        largest = max(g.norm().item() for g in exact[1])
        triples = zip([*outs, *grads], [*eager[0], *eager[1]], [*exact[0], *exact[1]], strict=True)
        for kind, (got, plain, true) in zip(case.kinds(), triples, strict=False):
            if true.norm().item() < 1e-9 * largest:
                # The key bias cancels in the softmax: its gradient is 0, and eager has only rounding there.
                assert got is None or got.norm().item() <= max(plain.norm().item(), 1e-6 * largest)
            else:
                pooled.setdefault(kind, []).append([t.flatten() for t in (got, plain, true)])
    for kind, draws in pooled.items():
        assert_as_good_as_eager(*(torch.cat(column) for column in zip(*draws, strict=True)), kind)


SHAPES = {
    "small": {"rows": 5},
    "one_of_everything": {"rows": 1, "tokens": 1, "dim": 1, "ranks": (1,)},
    "many_tokens": {"rows": 3, "tokens": 29, "dim": 32, "ranks": (8, 8, 8)},
    "ranks_differ": {"rows": 2, "tokens": 17, "dim": 48, "ranks": (1, 16, 7, 24)},
    "primes": {"rows": 1, "tokens": 101, "dim": 37, "ranks": (5, 11)},
    "no_biases": {"rows": 2, "tokens": 19, "dim": 24, "ranks": (6, 3), "biases": False},
    "one_adapter": {"rows": 2, "tokens": 31, "dim": 24, "ranks": (48,)},
    "sixteen_adapters": {"rows": 4, "tokens": 70, "dim": 32, "ranks": (4,) * 16},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_at_most_twice_eager_error(shape, dtype, backend):
    check(partial(Case, **SHAPES[shape], dtype=DTYPES[dtype]), backend, temperature=1.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", ["small", "many_tokens", "no_biases"])
def test_score_dropout_replays_and_then_the_key_bias_counts(shape, backend):
    seed = torch.tensor([(1 << 33) + 5])
    case = Case(**SHAPES[shape])
    check(partial(Case, **SHAPES[shape]), backend, dropout=0.4, training=True, seed=seed)
    if case.biases:
        flat = leaves(case.tensors, torch.float32)
        with use_backend(backend):
            out = adapter_fusion(*case.arguments(flat), dropout=0.4, training=True, seed=seed)
            plain = adapter_fusion(*case.arguments(flat), dropout=0.4, seed=seed)
        assert torch.autograd.grad(out.sum(), flat[-1])[0].abs().max() > 0
        assert torch.autograd.grad(plain.sum(), flat[-1], allow_unused=True)[0] is None


def test_both_orders_of_the_matrix_products_agree_in_float64(monkeypatch):
    from hfadapt_kernels.adapter_fusion import rank_space

    case = Case(rows=2, tokens=9, dtype=torch.float64)
    results = []
    for formed in (False, True):
        monkeypatch.setattr(rank_space, "form_on_weights", lambda *_, formed=formed: formed)
        with use_backend("reference"):
            results.append(case.run(torch.float64, through_op=True))
    exact = case.run(torch.float64, through_op=False)
    for outs, grads in results:
        for got, want in zip([*outs, *grads[:-1]], [*exact[0], *exact[1][:-1]], strict=True):
            assert rel_error(got, want) < 1e-12


def test_gradcheck_and_gradients_of_gradients_on_the_reference():
    case = Case(rows=1, tokens=2, dim=3, ranks=(2, 1), dtype=torch.float64)
    flat = leaves(case.tensors, torch.float64)[:-1]

    def run(*flat):
        return adapter_fusion(*case.arguments([*flat, case.tensors[-1]]), return_weights=True)

    with use_backend("reference"):
        torch.autograd.gradcheck(run, flat)
        torch.autograd.gradgradcheck(run, flat)


def test_fusing_one_adapter_with_identity_value_is_that_adapter():
    case = Case(ranks=(5,), dtype=torch.float64)
    x, hidden, up, up_bias, scale, qw, qb, kw, kb, _ = case.arguments(case.tensors)
    out, weights = adapter_fusion(
        x, hidden, up, up_bias, scale, qw, qb, kw, kb, torch.eye(16).double(), return_weights=True
    )
    assert rel_error(out, scale[0] * torch.nn.functional.linear(hidden[0], up[0], up_bias[0])) < 1e-14
    assert (weights == 1).all()


@pytest.mark.parametrize("size", ["scalar", "one", "vector"])
def test_learned_scales_get_their_gradient(size):
    case = Case(dtype=torch.float64)
    scale = [torch.full({"scalar": (), "one": (1,), "vector": (16,)}[size], 0.7 + n).double() for n in range(2)]
    arguments = list(case.arguments(case.tensors))
    grads = []
    for function in (adapter_fusion, adapter_fusion_reference):
        arguments[4] = leaves(scale, torch.float64)
        out = function(*arguments)
        out = out[0] if isinstance(out, tuple) else out
        grads.append(torch.autograd.grad((out * case.grad).sum(), arguments[4]))
    assert all(rel_error(a, b) < 1e-12 for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_bits_twice_and_non_contiguous_inputs_and_inputs_unchanged(dtype, backend):
    case = Case(rows=3, tokens=29, dim=32, ranks=(8, 5, 8), dtype=DTYPES[dtype])
    before = [t.clone() for t in case.tensors]
    with use_backend(backend):
        first = case.run(case.dtype, through_op=True)
        second = case.run(case.dtype, through_op=True)
        strided = [torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0] for t in case.tensors]
        out = adapter_fusion(*case.arguments(strided))
    assert all(
        torch.equal(a, b) for a, b in zip([*first[0], *first[1][:-1]], [*second[0], *second[1][:-1]], strict=True)
    )
    torch.testing.assert_close(out, first[0][0], rtol=1e-2 if dtype == "bfloat16" else 1e-5, atol=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, case.tensors, strict=True))


@needs_cpp
def test_the_core_gives_the_same_bits_with_one_and_two_threads():
    make = torch.Generator().manual_seed(0)
    hidden = [torch.randn(300, rank, generator=make) for rank in (48, 7)]
    products, grad = torch.randn(300, 57, generator=make), torch.randn(300, 57, generator=make)
    results = []
    with use_backend("cpu"):
        for count in (1, 2):
            with threads(count):
                flat = leaves([products, *hidden], torch.float32)
                weighted, weights = torch.ops.hfadapt.adapter_fusion(flat[0], flat[1:], None, 1.0, 0.0, None)
                results.append([weighted, weights, *torch.autograd.grad(weighted, flat, grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_rows_and_zero_tokens(backend):
    with use_backend(backend):
        for case in (Case(rows=0), Case(tokens=0)):
            out = adapter_fusion(*case.arguments(case.tensors))
            assert out.shape == case.tensors[0].shape


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 3), tokens=st.integers(1, 20), dim=st.integers(1, 40), biases=st.booleans(),
    ranks=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 100),
)  # fmt: skip
def test_any_shape(backend, rows, tokens, dim, biases, ranks, seed):
    case = Case(rows, tokens, dim, tuple(ranks), biases, seed=seed)
    with use_backend(backend), nan_poisoned():
        outs, grads = case.run(torch.float32, through_op=True)
    kinds = case.kinds()[: 2 + len(grads)]
    # Without dropout the key bias cancels in the softmax: no gradient.
    groups = {kind: [i for i, own in enumerate(kinds) if own == kind] for kind in kinds if kind != "key_bias"}

    def evaluate(inputs):
        near = copy.copy(case)
        near.tensors = inputs
        outs, grads = near.run(inputs[0].dtype, through_op=False)
        return [*outs, *grads]

    assert_as_good_as_eager_nearby([*outs, *grads], evaluate, case.tensors, groups)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("need_hidden", [False, True])
def test_opcheck(need_hidden, backend):
    case = Case(rows=1, tokens=7)
    hidden = [z.detach().reshape(7, -1).requires_grad_(need_hidden) for z in case.tensors[1:3]]
    products, shift = torch.randn(7, 10, requires_grad=True), torch.randn(7, requires_grad=True)
    with use_backend(backend):
        torch.library.opcheck(torch.ops.hfadapt.adapter_fusion.default, (products, hidden, shift, 2.0, 0.0, None))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_to_one_graph_with_equal_gradients(backend):
    case = Case(rows=2, tokens=9)

    def run(flat):
        return adapter_fusion(*case.arguments(flat)).tanh()

    with use_backend(backend):
        flat = leaves(case.tensors[:-1], torch.float32)
        full = [*flat, case.tensors[-1]]
        want = torch.autograd.grad(run(full).sum(), flat)
        got = torch.autograd.grad(torch.compile(run, fullgraph=True, backend="aot_eager")(full).sum(), flat)
    assert all(rel_error(a, b) < 1e-5 for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_in_its_dtype(backend):
    case = Case(rows=2, tokens=9)
    with use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            out, weights = adapter_fusion(*case.arguments(case.tensors), return_weights=True)
        exact = adapter_fusion(*case.arguments(case.tensors))
    assert out.dtype == torch.bfloat16 and weights.dtype == torch.float32
    assert rel_error(out, exact) < 5e-2


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (0, torch.randn(3, 16), ["query", "[B, T, D]", "[3, 16]"]),
        (1, [torch.randn(2, 3, 4)], ["number of adapters", "hidden 1", "up 2"]),
        (1, [], ["number of adapters", "at least one", "hidden 0"]),
        (2, [torch.randn(16, 4), torch.randn(16, 5)], ["up[1]", "[16, 4]", "[16, 5]"]),
        (3, [torch.randn(16), torch.randn(15)], ["up_bias[1]", "[16]", "[15]"]),
        (4, [1.0, torch.randn(3)], ["scale[1]", "[16]", "[3]"]),
        (5, torch.randn(16, 15), ["query_weight", "[16, 16]", "[16, 15]"]),
        (9, torch.randn(16, 16).double(), ["value_weight", "float32", "float64"]),
    ],
)
def test_wrong_shapes_name_argument_expected_and_got(position, value, words):
    case = Case()
    arguments = list(case.arguments(case.tensors))
    arguments[position] = value
    with pytest.raises(ShapeError) as error:
        adapter_fusion(*arguments)
    assert all(word in str(error.value) for word in ["adapter_fusion", *words]), str(error.value)


def test_wrong_temperature_and_dropout_are_refused():
    case = Case()
    with pytest.raises(ShapeError, match=r"temperature.*above 0.*got 0"):
        adapter_fusion(*case.arguments(case.tensors), temperature=0.0)
    with pytest.raises(ShapeError, match="dropout"):
        adapter_fusion(*case.arguments(case.tensors), dropout=1.0)


def parameters(case):
    """The case's arguments with its weights as parameters, as a layer has them."""
    return case.arguments([torch.nn.Parameter(one, requires_grad=False) for one in case.tensors])


def test_kept_products_change_no_bit_and_are_worked_out_once(monkeypatch):
    made, stock = [], op_module.weight_products
    monkeypatch.setattr(op_module, "weight_products", lambda *all_of: [made.append(1), stock(*all_of)][1])
    case = Case(rows=4, tokens=16)
    call, kept = parameters(case), KeptProducts()
    with torch.no_grad():
        want = adapter_fusion(*call)
        assert not made
        for _ in range(3):
            assert torch.equal(adapter_fusion(*call, kept=kept), want)
    with torch.inference_mode():
        assert torch.equal(adapter_fusion(*call, kept=kept), want)
    assert made == [1]
    adapter_fusion(*call, kept=kept)  # where a gradient may be asked for
    with torch.no_grad():
        adapter_fusion(*call, kept=kept)
    assert made == [1, 1]


def test_kept_products_are_worked_out_anew_for_weights_that_changed():
    call, kept = parameters(Case(rows=4, tokens=16)), KeptProducts()
    weights = [*call[2], *(call[3] or ()), *call[5:10]]

    def same():
        with torch.no_grad():
            return torch.equal(adapter_fusion(*call, kept=kept), adapter_fusion(*call))

    assert same()
    for weight in weights:
        if weight is not call[8]:  # the key's bias moves all scores alike
            weight.mul_(1.5)  # which torch counts
            assert same()
            weight.data.mul_(1.5)  # and which it does not
            assert same()
    for weight in call[5:8:2]:  # one number alone, and rows that change places
        weight.data[1, 2] += 1
        assert same()
        weight.data.copy_(weight.data.flip(0))
        assert same()
        weight.data.copy_(weight.data.flip(1))
        assert same()
    moved = list(call)
    moved[5] = torch.nn.Parameter(call[5] * 2, requires_grad=False)
    with torch.no_grad():
        assert torch.equal(adapter_fusion(*moved, kept=kept), adapter_fusion(*moved))
        moved[4] = [2.0 for _ in call[4]]
        assert torch.equal(adapter_fusion(*moved, kept=kept), adapter_fusion(*moved))
        moved[4] = [torch.nn.Parameter(torch.tensor(2.0), requires_grad=False) for _ in call[4]]
        for _ in range(2):
            assert torch.equal(adapter_fusion(*moved, kept=kept), adapter_fusion(*moved))
            moved[4][0].data.add_(1)


def test_products_of_what_is_no_parameter_are_not_kept():
    case, kept = Case(rows=4, tokens=16), KeptProducts()
    with torch.no_grad():
        adapter_fusion(*case.arguments(case.tensors), kept=kept)
    assert kept._last is None
