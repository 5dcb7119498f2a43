"""A kernel is called without torch's dispatcher where nothing else asks for the op, and through it where it does."""

from __future__ import annotations

import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hfadapt_kernels import TaskBatch, grouped_lora, parallel_adapter_norm, use_backend

OPS = ("grouped_lora", "parallel_adapter_norm")


def weights(*shape: int) -> list[torch.Tensor]:
    return [torch.randn(*shape) for _ in range(3)]


def call(op: str, x: torch.Tensor, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    batch = TaskBatch.from_ids([0, 2, -1, 1], 3) if len(a) == 3 else TaskBatch.single(4)
    if op == "grouped_lora":
        return grouped_lora(x, a, b, 0.5, batch, y=x)
    return parallel_adapter_norm(x, x, a, b, batch, scale=0.5)


def operands() -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(0)
    return torch.randn(4, 5, 16), weights(2, 16), weights(16, 2)


def crossings(function) -> list[str]:
    """The calls that go through torch's dispatcher to an op of the namespace ``hfadapt``."""
    found: list[str] = []

    def watch(frame, event, arg):
        if event == "call" and frame.f_code.co_name in ("__call__", "redispatch"):
            name = getattr(frame.f_locals.get("self"), "_name", "")
            if name.startswith("hfadapt::"):
                found.append(name)

    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", OPS)
def test_without_gradients_no_call_crosses_the_dispatcher(op: str) -> None:
    x, a, b = operands()
    with torch.no_grad():
        assert crossings(lambda: call(op, x, a, b)) == []


@pytest.mark.parametrize("op", OPS)
def test_with_gradients_one_call_reaches_autograd_and_none_goes_on(op: str) -> None:
    x, a, b = operands()
    a = [t.requires_grad_() for t in a]
    out: list[torch.Tensor] = []
    assert crossings(lambda: out.append(call(op, x, a, b))) == [f"hfadapt::{op}"]
    (name,) = {*crossings(lambda: out[0].sum().backward())} or {"none"}
    assert name == "none"
    assert all(t.grad is not None for t in a)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_a_mode_sees_the_op_by_name_and_the_bits_are_the_same(op: str, backend: str) -> None:
    x, a, b = operands()
    with torch.no_grad(), use_backend(backend):
        alone = call(op, x, a, b)
        with Seen() as seen:
            watched = call(op, x, a, b)
    if backend == "auto":
        assert f"hfadapt::{op}" in seen.names
    assert torch.equal(alone, watched)


@pytest.mark.parametrize("op", OPS)
def test_tensors_without_content_go_through_the_dispatcher(op: str) -> None:
    x, a, b = operands()
    with torch.no_grad(), FakeTensorMode() as mode:
        found = call(op, mode.from_tensor(x), [mode.from_tensor(a[0])], [mode.from_tensor(b[0])])
    assert found.shape == x.shape
    assert type(found) is not torch.Tensor


@pytest.mark.parametrize("op", OPS)
def test_tensors_of_a_class_of_their_own_go_through_the_dispatcher(op: str) -> None:
    class Own(torch.Tensor):
        pass

    x, a, b = operands()
    with torch.no_grad():
        through = crossings(lambda: call(op, x, [a[0], a[1], a[2].as_subclass(Own)], b))
        assert through
        assert torch.equal(call(op, x, [t.as_subclass(Own) for t in a], b), call(op, x, a, b))


@pytest.mark.parametrize("op", OPS)
def test_under_autocast_a_call_without_gradients_has_the_bits_of_one_with(op: str) -> None:
    x, a, b = operands()
    trained = [t.clone().requires_grad_() for t in a]
    with torch.autocast("cpu", torch.bfloat16):
        with_gradients = call(op, x, trained, b)
        with torch.no_grad():
            without = call(op, x, a, b)
    assert torch.equal(with_gradients, without)
