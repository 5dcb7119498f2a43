"""`prefix_attention`: the formula, every gradient on every backend, odd shapes, masks and dropout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hfadapt_kernels import TaskBatch, use_backend
from hfadapt_kernels.prefix_attention import prefix_attention, prefix_attention_reference
from hfadapt_kernels.testing import nan_poisoned, rel_error
from tests.kernels.prefix_cases import BACKENDS, DTYPES, FORMS, SHAPES, Case, check

GOLDEN = Path(__file__).parents[1] / "golden/data/formula/prefix_identity.safetensors"


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scaling", [-0.7, 1.3])
@pytest.mark.parametrize("shape", ["ragged", "decode"])
def test_any_scaling_without_a_bias(shape, scaling, dtype, backend):
    check(Case(**SHAPES[shape], dtype=DTYPES[dtype]), backend, bias=False, gate=True, scaling=scaling)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries", [1, 5])
def test_nan_stays_nan_unless_its_key_is_masked(queries, backend):
    case = Case([0, -1], [3], heads=2, groups=2, queries=queries)
    query, key, value = (t.clone() for t in case.tensors)
    query[0, 0, 0, 0] = key[1, 1, 2, 0] = float("nan")
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    with use_backend(backend):
        seen = prefix_attention(query, key, value, case.prefix_key, case.prefix_value, case.batch)
        mask[1, :, :, 2] = False
        hidden = prefix_attention(query, key, value, case.prefix_key, case.prefix_value, case.batch, mask=mask)
    assert (
        torch.isnan(seen[0, 0, 0]).all() and torch.isfinite(seen[0, 0, 1:]).all() and torch.isfinite(seen[0, 1]).all()
    )
    assert torch.isnan(seen[1, 1]).all() and torch.isfinite(seen[1, 0]).all()
    assert torch.isnan(hidden[0, 0, 0]).all() and torch.isfinite(hidden[1]).all()


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
