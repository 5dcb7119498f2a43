"""`prefix_attention`: rows do not depend on each other, bits repeat, any layout and emptiness is accepted."""

from __future__ import annotations

import pytest
import torch

from hfadapt_kernels import TaskBatch, use_backend
from hfadapt_kernels.prefix_attention import prefix_attention
from hfadapt_kernels.testing import threads
from tests.kernels.prefix_cases import BACKENDS, DTYPES, SHAPES, Case


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
