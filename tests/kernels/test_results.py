"""Large results of the C++ ops: memory that nobody holds any more is used again, and only that."""

from __future__ import annotations

import threading

import pytest
import torch

from hfadapt_kernels import native
from hfadapt_kernels.cpu_tensors import empty_result
from hfadapt_kernels.testing import nan_poisoned

pytestmark = pytest.mark.skipif(
    not native.available() or not torch.ops.hfadapt_cpu.keeps_results(), reason="needs the C++ kernels and torch 2.11"
)

SHAPE = (3, 128, 1024)  # 1.5 MiB in float32


def test_memory_that_nobody_holds_is_used_again():
    like = torch.zeros(1)
    first = empty_result(like, SHAPE)
    where = first.data_ptr()
    view = first[1:]
    del first
    second = empty_result(like, SHAPE)
    assert second.data_ptr() != where, "a view still holds it"
    del view
    assert empty_result(like, SHAPE).data_ptr() == where


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_result_is_an_ordinary_tensor(dtype):
    result = empty_result(torch.zeros(2, 2, dtype=dtype).t(), SHAPE)
    assert (result.dtype, tuple(result.shape), result.stride()) == (dtype, SHAPE, (128 * 1024, 1024, 1))
    assert result.data_ptr() % 64 == 0 and result.untyped_storage().nbytes() == result.numel() * result.element_size()
    result.copy_(torch.arange(result.numel()).view(SHAPE) % 7)
    assert torch.equal(result.clone().sum(0), (result.requires_grad_() * 1.0).detach().sum(0))


def test_results_that_are_held_never_share_memory():
    held = [empty_result(torch.zeros(1), SHAPE).fill_(i) for i in range(8)]
    del held[3]
    held.append(empty_result(torch.zeros(1), SHAPE).fill_(8.0))
    assert [int(t.min()) for t in held] == [int(t.max()) for t in held] == [0, 1, 2, 4, 5, 6, 7, 8]


def test_threads_may_ask_and_give_back_at_once():
    wrong = []

    def work(value: int) -> None:
        for _ in range(40):
            result = empty_result(torch.zeros(1), SHAPE).fill_(value)
            wrong.extend([value] if not bool((result == value).all()) else [])

    workers = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert not wrong


def test_the_deterministic_mode_of_torch_fills_it():
    with nan_poisoned():
        assert empty_result(torch.zeros(1), SHAPE).isnan().all()
