"""`prefix_attention` as an op of torch: opcheck, compile, autocast, second derivatives, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from hfadapt_kernels import RowIdError, ShapeError, TaskBatch, UnsupportedError, use_backend
from hfadapt_kernels.prefix_attention import prefix_attention
from hfadapt_kernels.testing import rel_error
from tests.kernels.prefix_cases import BACKENDS, FORMS, SHAPES, Case, needs_cpp


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
    with use_backend(backend), pytest.raises(RowIdError, match=r"ids\[1\].*0..1, got 2"):
        torch.ops.hfadapt.prefix_attention(*arguments)
