"""`prefix_attention`: the formula, every gradient on every backend, odd shapes, masks, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hfadapt_kernels import RowIdError, ShapeError, TaskBatch, UnsupportedError, native, use_backend
from hfadapt_kernels.prefix_attention import prefix_attention, prefix_attention_reference
from hfadapt_kernels.testing import assert_as_good_as_eager, leaves, nan_poisoned, rel_error, threads

GOLDEN = Path(__file__).parents[1] / "golden/data/formula/prefix_identity.safetensors"
needs_cpp = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpp)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMS = ("softmax", "no_gating", "relu")


class Case:
    """Random inputs of one shape; ``lengths`` are the prefix lengths of the tasks, ``ids`` the rows' tasks."""

    def __init__(self, ids, lengths, heads=4, groups=2, queries=5, keys=7, dim=8, dtype=torch.float32, seed=0):
        make = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=make, dtype=torch.float64).to(dtype)

        rows = len(ids)
        self.ids, self.dtype = ids, dtype
        self.batch = TaskBatch.from_ids(ids, len(lengths))
        self.tensors = [
            normal(rows, heads, queries, dim), normal(rows, groups, keys, dim), normal(rows, groups, keys, dim)
        ]  # fmt: skip
        self.prefix_key = [normal(groups, length, dim) for length in lengths]
        self.prefix_value = [normal(groups, length, dim) for length in lengths]
        self.bias = normal(1, heads, queries, keys)
        self.grad = normal(rows, heads, queries, dim)
        self.grad_gate = normal(rows, heads, queries).float()

    def inputs(self, dtype):
        flat = leaves([*self.tensors, *self.prefix_key, *self.prefix_value, self.bias], dtype)
        tasks = len(self.prefix_key)
        return flat, (*flat[:3], flat[3 : 3 + tasks], flat[3 + tasks : 3 + 2 * tasks]), flat[-1]

    def run(self, dtype, *, through_op, bias=True, gate=False, **options):
        """Outputs and gradients of the op, or of the plain reference, at ``dtype``."""
        flat, args, position_bias = self.inputs(dtype)
        scaling = options.pop("scaling", None) or args[0].shape[-1] ** -0.5
        if not bias:
            position_bias, flat = None, flat[:-1]
        if through_op:
            out = prefix_attention(
                *args, self.batch, position_bias=position_bias, scaling=scaling, return_gate=gate, **options
            )
            outs = list(out) if gate else [out]
        else:
            training = options.pop("training", False)
            if not training:
                options.update(dropout=0.0, seed=None)
            out, lam = prefix_attention_reference(
                *args, self.batch.op_ids, position_bias=position_bias, scaling=scaling, **options
            )
            outs = [out, lam] if gate else [out]
        seeds = [self.grad.to(dtype), self.grad_gate.to(outs[1].dtype)] if gate else [self.grad.to(dtype)]
        live = [(out, seed) for out, seed in zip(outs, seeds, strict=True) if out.requires_grad]
        return outs, torch.autograd.grad([o for o, _ in live], flat, [s for _, s in live], allow_unused=True)


def check(case, backend, *, gate=False, bias=True, **options):
    """Outputs and every gradient are at most twice as far from float64 as the eager formula at the same dtype."""
    with use_backend(backend), nan_poisoned():
        outs, grads = case.run(case.dtype, through_op=True, gate=gate, bias=bias, **dict(options))
    eager_outs, eager_grads = case.run(case.dtype, through_op=False, gate=gate, bias=bias, **dict(options))
    exact_options = {k: v.double() if k == "mask" and v.is_floating_point() else v for k, v in options.items()}
    exact_outs, exact_grads = case.run(torch.float64, through_op=False, gate=gate, bias=bias, **exact_options)
    tasks = len(case.prefix_key)
    names = ["query", "key", "value"]
    names += [f"prefix_{kind}[{t}]" for kind in ("key", "value") for t in range(tasks)] + ["position_bias"]
    for got, eager, exact in zip(outs, eager_outs, exact_outs, strict=True):
        assert_as_good_as_eager(got, eager, exact, "output")
    for name, got, eager, exact in zip(names, grads, eager_grads, exact_grads, strict=False):
        if exact is None or got is None:
            assert exact is None or exact.abs().max() == 0 or exact.numel() == 0, f"{name}: gradient missing"
        else:
            assert_as_good_as_eager(got, eager, exact, f"gradient of {name}")


def concatenated(case, mask=None, causal=False):
    """The textbook form: per row, prefix and keys joined, one softmax."""
    rows = []
    for row, task in enumerate(case.ids):
        q, k, v = (t[row].double() for t in case.tensors)
        rep = q.shape[0] // k.shape[0]
        bias = case.bias[0].double()
        if causal:
            bias = bias.masked_fill(~torch.ones(bias.shape[1:], dtype=torch.bool).tril(k.shape[1] - q.shape[1]), -1e300)
        if mask is not None:
            bias = bias.masked_fill(~mask[row], -1e300)
        if task >= 0:
            pk, pv = case.prefix_key[task].double(), case.prefix_value[task].double()
            k, v = torch.cat([pk, k], 1), torch.cat([pv, v], 1)
            bias = torch.nn.functional.pad(bias, (pk.shape[1], 0))
        k, v = k.repeat_interleave(rep, 0), v.repeat_interleave(rep, 0)
        rows.append((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v)
    return torch.stack(rows)


# The formula.


def test_reference_equals_the_golden_identity_in_float64():
    golden = load_file(GOLDEN)
    rows = golden["q"].shape[0]
    scaling = golden["q"].shape[-1] ** -0.5
    args = [golden["q"], golden["k"], golden["v"], [golden["P_k"]], [golden["P_v"]], TaskBatch.single(rows)]
    options = {"mask": golden["additive_mask"], "scaling": scaling}
    with use_backend("reference"):
        out, gate = prefix_attention(*args, return_gate=True, **options)
        no_gating = prefix_attention(*args, form="no_gating", **options)
        relu = prefix_attention(*args, form="relu", **options)
    assert rel_error(out, golden["out.prefix_concat"]) < 1e-12
    assert rel_error(out, golden["out.gated"]) < 1e-12
    assert rel_error(gate, golden["out.lambda"].squeeze(-1)) < 1e-12
    assert rel_error(no_gating, golden["out.no_gating"]) < 1e-12
    assert rel_error(relu, golden["out.mh_pa_relu"]) < 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_reference_equals_concatenation_with_ragged_prefixes_and_masks(causal):
    case = Case([1, -1, 0, 2, 1], [3, 6, 0], dtype=torch.float64)
    mask = torch.ones(5, 1, 5, 7, dtype=torch.bool)
    mask[:, :, :, 5:] = False
    got, _ = prefix_attention_reference(
        *case.tensors, case.prefix_key, case.prefix_value, case.batch.op_ids,
        mask=mask, position_bias=case.bias, causal=causal, scaling=8**-0.5,
    )  # fmt: skip
    assert rel_error(got, concatenated(case, mask, causal)) < 1e-12


def test_reference_gradients_pass_gradcheck():
    case = Case([0, 1, -1], [2, 1], heads=2, groups=1, queries=2, keys=3, dim=2, dtype=torch.float64)
    flat, _, _ = case.inputs(torch.float64)
    for form in FORMS:

        def run(q, k, v, a, b, c, d, bias, form=form):
            with use_backend("reference"):
                gate = form == "softmax"
                return prefix_attention(
                    q, k, v, [a, b], [c, d], case.batch, position_bias=bias, form=form, return_gate=gate
                )

        torch.autograd.gradcheck(run, flat)


# Every backend against float64.

SHAPES = {
    "ragged": {"ids": [1, -1, 0, 2, 1], "lengths": [3, 6, 0]},
    "one_row_a_task": {"ids": [2, 0, 1], "lengths": [4, 4, 4], "heads": 3, "groups": 3, "dim": 16},
    "task_without_rows": {"ids": [0, 0, 2, -1], "lengths": [5, 2, 17], "dim": 32},
    "all_rows_one_task": {"ids": [0] * 4, "lengths": [30], "heads": 2, "groups": 2, "queries": 17, "keys": 17},
    "no_row_has_a_task": {"ids": [-1, -1], "lengths": [3]},
    "one_of_everything": {
        "ids": [0], "lengths": [1], "heads": 1, "groups": 1, "queries": 1, "keys": 1, "dim": 1
    },
    "primes": {
        "ids": [1, 0, 1], "lengths": [13, 31], "heads": 7, "groups": 1, "queries": 29, "keys": 37, "dim": 17
    },
    "decode": {"ids": [0, 1, -1, 0], "lengths": [30, 7], "queries": 1, "keys": 131, "dim": 64, "heads": 8},
    "blocks": {"ids": [1, 0], "lengths": [65, 64], "queries": 129, "keys": 129, "dim": 64, "heads": 2, "groups": 1},
    "wide_heads": {"ids": [0, -1], "lengths": [9], "queries": 20, "keys": 33, "dim": 136, "heads": 2, "groups": 2},
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_at_most_twice_eager_error(shape, dtype, backend):
    check(Case(**SHAPES[shape], dtype=DTYPES[dtype]), backend, gate=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["no_gating", "relu"])
@pytest.mark.parametrize("shape", ["ragged", "primes", "blocks"])
def test_other_forms(shape, form, dtype, backend):
    check(Case(**SHAPES[shape], dtype=DTYPES[dtype]), backend, form=form)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["ragged", "decode", "blocks", "all_rows_one_task"])
def test_causal(shape, dtype, backend):
    check(Case(**SHAPES[shape], dtype=DTYPES[dtype]), backend, causal=True, bias=False)


def masks(rows, heads, queries, keys):
    make = torch.Generator().manual_seed(1)
    padding = torch.rand(rows, 1, 1, keys, generator=make) > 0.3
    full = torch.rand(rows, heads, queries, keys, generator=make) > 0.3
    return {
        "bool_padding": padding,
        "bool_full": full,
        "bool_per_query": full[:, :1],
        "additive_min": torch.zeros(padding.shape).masked_fill(~padding, torch.finfo(torch.float32).min),
        "additive_inf": torch.zeros(full.shape).masked_fill(~full, float("-inf")),
        "additive_one_row": torch.randn(1, 1, queries, keys, generator=make),
        "bool_left_padding": (torch.arange(keys) >= 3).expand(rows, 1, queries, keys),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", masks(1, 1, 1, 1))
def test_masks(kind, dtype, backend):
    case = Case([1, -1, 0, 2, 1], [3, 6, 0], dtype=DTYPES[dtype], keys=19)
    check(case, backend, mask=masks(5, 4, 5, 19)[kind], gate=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_rows_that_may_see_nothing_give_zeros_and_finite_gradients(form, backend):
    case = Case([0, -1, 1], [3, 0])
    mask = torch.zeros(3, 1, 5, 7, dtype=torch.bool)
    with use_backend(backend):
        (out,), grads = case.run(torch.float32, through_op=True, mask=mask, form=form)
    assert torch.isfinite(out).all() and all(torch.isfinite(g).all() for g in grads if g is not None)
    assert (out[1] == 0).all() and (out[2] == 0).all() and (out[0] != 0).any()
    check(case, backend, mask=mask, form=form)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_replays_from_its_seed(dtype, form, backend):
    case = Case(**SHAPES["primes"], dtype=DTYPES[dtype])
    check(case, backend, form=form, dropout=0.3, training=True, seed=torch.tensor([(1 << 40) + 77]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_draws_its_seed_from_torch_and_only_in_training(backend):
    case = Case(**SHAPES["ragged"])
    args = (*case.tensors, case.prefix_key, case.prefix_value, case.batch)
    with use_backend(backend):
        plain = prefix_attention(*args)
        assert torch.equal(prefix_attention(*args, dropout=0.5), plain)
        torch.manual_seed(3)
        first = prefix_attention(*args, dropout=0.5, training=True)
        torch.manual_seed(3)
        assert torch.equal(prefix_attention(*args, dropout=0.5, training=True), first)
        assert not torch.equal(first, plain)


# Independence, determinism, layout.


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_is_bitwise_independent_of_its_neighbours_tasks(backend):
    one, other = Case([1, -1, 0, 2, 1], [3, 6, 9]), Case([1, -1, 2, 0, 0], [3, 6, 9])
    with use_backend(backend):
        first = prefix_attention(*one.tensors, one.prefix_key, one.prefix_value, one.batch)
        second = prefix_attention(*one.tensors, one.prefix_key, one.prefix_value, other.batch)
    assert torch.equal(first[:2], second[:2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_a_task_equal_an_empty_prefix_bitwise(backend):
    case = Case([-1, 0], [4])
    empty = [torch.empty(2, 0, 8)]
    with use_backend(backend):
        mixed = prefix_attention(*case.tensors, case.prefix_key, case.prefix_value, case.batch)
        none = prefix_attention(*case.tensors, empty, empty, TaskBatch.single(2))
    assert torch.equal(mixed[0], none[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_bits_twice_and_with_one_and_two_threads_and_inputs_unchanged(dtype, backend):
    case = Case(**SHAPES["blocks"], dtype=DTYPES[dtype])
    before = [t.clone() for t in (*case.tensors, *case.prefix_key, *case.prefix_value, case.bias)]
    results = []
    with use_backend(backend):
        for count in (1, 2, 2):
            with threads(count):
                outs, grads = case.run(case.dtype, through_op=True, gate=True)
                results.append([*outs, *grads])
    compared = results if backend == "cpu" else results[1:]  # torch's own products may depend on the thread count
    for other in compared[1:]:
        assert all(torch.equal(a, b) for a, b in zip(compared[0], other, strict=True))
    after = (*case.tensors, *case.prefix_key, *case.prefix_value, case.bias)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_non_contiguous_inputs_give_the_same(dtype, backend):
    case = Case(**SHAPES["primes"], dtype=DTYPES[dtype])

    def strided(tensor):
        wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] * 2), float("nan"), dtype=tensor.dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]

    def transposed(tensor):
        return tensor.transpose(-1, -3).contiguous().transpose(-1, -3)

    with use_backend(backend):
        want = prefix_attention(*case.tensors, case.prefix_key, case.prefix_value, case.batch)
        for change in (strided, transposed):
            tensors = [change(t) for t in case.tensors]
            pk, pv = [change(t) for t in case.prefix_key], [change(t) for t in case.prefix_value]
            assert torch.equal(prefix_attention(*tensors, pk, pv, case.batch), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_rows_zero_queries_and_zero_keys(backend):
    with use_backend(backend):
        case = Case([], [3])
        assert prefix_attention(*case.tensors, case.prefix_key, case.prefix_value, case.batch).shape == (0, 4, 5, 8)
        case = Case([0, -1], [3], queries=0)
        assert prefix_attention(*case.tensors, case.prefix_key, case.prefix_value, case.batch).shape == (2, 4, 0, 8)
        case = Case([0, -1], [3], keys=0)
        out, gate = prefix_attention(*case.tensors, case.prefix_key, case.prefix_value, case.batch, return_gate=True)
    assert (out[1] == 0).all() and (gate[1] == 0).all() and (gate[0] - 1).abs().max() < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_gradients_asked_for_and_none_for_absent_tasks(backend):
    case = Case([2, 0], [3, 3, 3])
    pk = [p.clone().requires_grad_() for p in case.prefix_key]
    with use_backend(backend):
        prefix_attention(*case.tensors, pk, case.prefix_value, case.batch).sum().backward()
    assert pk[1].grad is None and pk[0].grad.abs().sum() > 0 and pk[2].grad.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 4), lengths=st.lists(st.integers(0, 20), min_size=1, max_size=3), groups=st.integers(1, 3),
    rep=st.integers(1, 3), queries=st.integers(1, 20), keys=st.integers(1, 40), dim=st.integers(1, 40),
    causal=st.booleans(), bias=st.booleans(), form=st.sampled_from(FORMS), seed=st.integers(0, 100), data=st.data(),
)  # fmt: skip
def test_any_shape(backend, rows, lengths, groups, rep, queries, keys, dim, causal, bias, form, seed, data):
    ids = data.draw(st.lists(st.integers(-1, len(lengths) - 1), min_size=rows, max_size=rows))
    case = Case(ids, lengths, groups * rep, groups, queries, keys, dim, seed=seed)
    with use_backend(backend), nan_poisoned():
        (out,), grads = case.run(torch.float32, through_op=True, bias=bias, causal=causal, form=form)
    (exact,), exact_grads = case.run(torch.float64, through_op=False, bias=bias, causal=causal, form=form)
    assert rel_error(out, exact) < 2e-6
    scale = max(g.norm().item() for g in exact_grads if g is not None) + 1e-30
    for got, want in zip(grads, exact_grads, strict=True):
        if got is None or want is None:
            assert want is None or want.abs().max() == 0 if want is not None and want.numel() else True
        else:
            assert (got - want).norm().item() / scale < 5e-6


# Torch.library.


def op_arguments(case, form="softmax", ids=True):
    _, args, bias = case.inputs(case.dtype)
    return (*args, case.batch.ids if ids else None, None, bias, False, 0.3, form, 0.0, None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form, backend):
    with use_backend(backend):
        torch.library.opcheck(torch.ops.hfadapt.prefix_attention.default, op_arguments(Case(**SHAPES["ragged"]), form))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_to_one_graph_with_equal_gradients(backend):
    case = Case(**SHAPES["ragged"])

    def run(q, k, v, pk, pv, ids):
        batch = TaskBatch.from_ids(ids, 3)
        return prefix_attention(q, k, v, pk, pv, batch, causal=True).tanh()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with use_backend(backend):
        flat, args, _ = case.inputs(torch.float32)
        want = torch.autograd.grad(run(*args, case.batch.ids).sum(), flat[:-1], allow_unused=True)
        got = torch.autograd.grad(compiled(*args, case.batch.ids).sum(), flat[:-1], allow_unused=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_in_its_dtype(backend):
    case = Case(**SHAPES["ragged"])
    args = (case.prefix_key, case.prefix_value, case.batch)
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        out = prefix_attention(*case.tensors, *args)
    assert out.dtype == torch.bfloat16
    exact = prefix_attention(*case.tensors, *args)
    assert rel_error(out, exact) < 2e-2


@needs_cpp
def test_double_backward_is_a_clear_error_on_the_fused_backend():
    case = Case(**SHAPES["ragged"])
    flat, args, _ = case.inputs(torch.float32)
    with use_backend("cpu"):
        out = prefix_attention(*args, case.batch)
        (grad,) = torch.autograd.grad(out.sum(), flat[0], create_graph=True)
        with pytest.raises(RuntimeError, match=r"prefix_attention.*cannot be differentiated again"):
            grad.sum().backward()


# Bad input.


def broken(**changes):
    case = Case([0, 1], [3, 2])
    args = dict(
        zip(("query", "key", "value"), case.tensors, strict=True),
        prefix_key=case.prefix_key, prefix_value=case.prefix_value, batch=case.batch,
    )  # fmt: skip
    return {**args, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query": torch.randn(2, 4, 8)}, ["query", "[B, H, Tq, K]", "[2, 4, 8]"]),
        ({"key": torch.randn(2, 2, 7, 9)}, ["key", "8", "[2, 2, 7, 9]"]),
        ({"value": torch.randn(2, 2, 6, 8)}, ["value", "[2, 2, 7, 8]", "[2, 2, 6, 8]"]),
        ({"key": torch.randn(2, 3, 7, 8), "value": torch.randn(2, 3, 7, 8)}, ["heads", "divisor", "3"]),
        ({"value": torch.randn(2, 2, 7, 8).double()}, ["value", "float32", "float64"]),
        ({"prefix_key": [torch.randn(2, 3, 8)]}, ["number of prefixes", "2 tasks", "1"]),
        ({"prefix_key": [torch.randn(2, 3, 8), torch.randn(2, 9, 8)]}, ["prefix_value[1]", "9"]),
        ({"batch": TaskBatch.from_ids([0, 1, 0], 2)}, ["batch", "2 task ids", "3", "expand"]),
        ({"mask": torch.ones(2, 1, 5, 6, dtype=torch.bool)}, ["mask", "[2, 4, 5, 7]", "[2, 1, 5, 6]"]),
        ({"mask": torch.ones(2, 1, 5, 7, dtype=torch.int64)}, ["mask", "bool", "int64"]),
        ({"position_bias": torch.randn(3, 4, 5, 7)}, ["position_bias", "[3, 4, 5, 7]"]),
        ({"dropout": 1.5}, ["dropout", "1.5"]),
    ],
)
def test_wrong_shapes_name_argument_expected_and_got(changes, words):
    with pytest.raises(ShapeError) as error:
        prefix_attention(**broken(**changes))
    assert all(word in str(error.value) for word in ["prefix_attention", *words]), str(error.value)


def test_unknown_form_and_a_gate_that_does_not_exist_are_refused():
    with pytest.raises(UnsupportedError, match=r"one of .*no_gating.*got 'tanh'"):
        prefix_attention(**broken(form="tanh"))
    with pytest.raises(UnsupportedError, match="return_gate"):
        prefix_attention(**broken(form="relu", return_gate=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_out_of_range_are_refused_by_the_op_itself(backend):
    case = Case([0, 1], [3, 2])
    arguments = list(op_arguments(case))
    arguments[5] = torch.tensor([0, 2])
    with use_backend(backend), pytest.raises((RowIdError, RuntimeError), match=r"task id.*0..1.*2"):
        torch.ops.hfadapt.prefix_attention(*arguments)
