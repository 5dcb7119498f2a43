"""Inference on a processor goes to the C++ kernel at once: with the bits and the errors of a call that is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hfadapt_kernels as hk
from hfadapt_kernels import TaskBatch, grouped_lora, native, parallel_adapter_norm
from hfadapt_kernels.grouped_lora import op as lora_op
from hfadapt_kernels.parallel_adapter_norm import op as adapter_op

pytestmark = pytest.mark.skipif(native.isa() is None, reason="needs the C++ kernels, which the build could not compile")

MODULES = {"grouped_lora": lora_op, "parallel_adapter_norm": adapter_op}
TASKS, DIN, OUT = 3, 13, 11
IDS = [0, 2, -1, 1, 2]


def lists(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(*shape).to(dtype) for _ in range(TASKS)]


def arguments(op: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    torch.manual_seed(0)
    batch, scale = TaskBatch.from_ids(IDS, TASKS), [0.5, 1.0, 2.0]
    if op == "grouped_lora":
        x, y = torch.randn(5, 7, DIN).to(dtype), torch.randn(5, 7, OUT).to(dtype)
        a = [torch.randn(r, DIN).to(dtype) for r in (2, 9, 5)]
        b = [torch.randn(OUT, r).to(dtype) for r in (2, 9, 5)]
        return {"x": x, "a": a, "b": b, "scale": scale, "batch": batch, "y": y}
    return {
        "x": torch.randn(5, 7, OUT).to(dtype), "h": torch.randn(5, 7, DIN).to(dtype),
        "down": [torch.randn(r, DIN).to(dtype) for r in (2, 9, 5)],
        "up": [torch.randn(OUT, r).to(dtype) for r in (2, 9, 5)], "batch": batch,
        "down_bias": [torch.randn(r).to(dtype) for r in (2, 9, 5)], "up_bias": lists(OUT, dtype=dtype),
        "scale": scale, "activation": "gelu",
    }  # fmt: skip


def run(op: str, given: dict[str, Any]) -> Tensor:
    return (grouped_lora if op == "grouped_lora" else parallel_adapter_norm)(**given)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ops whose arguments Python looked at."""
    found: list[str] = []
    for op, module in MODULES.items():
        before = module.require_tensors
        monkeypatch.setattr(
            module, "require_tensors", lambda *a, op=op, before=before: (found.append(op), before(*a))[1]
        )
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", MODULES)
def test_inference_is_not_looked_at_and_has_the_same_bits(op: str, dtype: torch.dtype, looked_at: list[str]) -> None:
    given = arguments(op, dtype)
    checked = run(op, given)
    assert looked_at
    looked_at.clear()
    with torch.no_grad():
        assert torch.equal(run(op, given), checked)
        assert not looked_at


@pytest.mark.parametrize("op", MODULES)
def test_weights_that_stand_transposed_in_memory_have_the_same_bits(op: str) -> None:
    given = arguments(op)
    with torch.no_grad():
        wanted = run(op, given)
        for name in ("a", "b") if op == "grouped_lora" else ("down", "up"):
            given[name] = [t.T.contiguous().T for t in given[name]]
        assert torch.equal(run(op, given), wanted)


# How rows may lie in memory, whatever their numbers.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "channels first": lambda t: t.movedim(-1, 1).contiguous().movedim(1, -1),
    "part of wider rows": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "part of longer texts": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "every other column": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "expanded": lambda t: t[:, :1].expand(t.shape),
    "one token": lambda t: t[:, 1:2],
    "no token axis": lambda t: t[:, 1],
    "two axes of tokens": lambda t: t[:, :6].unflatten(1, (2, 3)),
}


@pytest.mark.parametrize("which", ["x", "y", "both"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_may_lie_in_memory_as_they_like(layout: str, which: str, looked_at: list[str]) -> None:
    given = arguments("grouped_lora")
    for name in ("x", "y"):
        turned = LAYOUTS[layout](given[name])
        given[name] = turned if which in (name, "both") else turned.contiguous()
    wanted = run("grouped_lora", given)
    looked_at.clear()
    with torch.no_grad():
        assert torch.equal(run("grouped_lora", given), wanted)
    assert not looked_at


def test_a_large_result_has_the_same_bits(looked_at: list[str]) -> None:
    torch.manual_seed(0)
    given = arguments("grouped_lora")
    given["x"], given["y"] = torch.randn(5, 5000, DIN), torch.randn(5, 5000, OUT)
    wanted = run("grouped_lora", given)
    looked_at.clear()
    with torch.no_grad():
        assert torch.equal(run("grouped_lora", given), wanted)
    assert not looked_at


def changed(name: str, task: int, change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(given: dict[str, Any]) -> None:
        given[name] = [change(t) if index == task else t for index, t in enumerate(given[name])]

    return apply


def replaced(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(given: dict[str, Any]) -> None:
        given[name] = change(given[name])

    return apply


# What may be wrong with one task's weight, whatever the op: the other tasks' are in order.
WEIGHT: dict[str, Callable[[Tensor], Any]] = {
    "turned round": lambda t: t.T.contiguous(),
    "one axis more": lambda t: t[None],
    "flat": lambda t: t.reshape(-1),
    "too wide": lambda t: torch.cat([t, t], 1),
    "too tall": lambda t: torch.cat([t, t], 0),
    "whole numbers": lambda t: t.long(),
    "on meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "no tensor": lambda t: t.tolist(),
    "missing": lambda t: None,
}
LORA = [("grouped_lora", "a"), ("grouped_lora", "b")]
ADAPTER = [("parallel_adapter_norm", "down"), ("parallel_adapter_norm", "up")]
WEIGHTS = LORA + ADAPTER
BIASES = [("parallel_adapter_norm", "down_bias"), ("parallel_adapter_norm", "up_bias")]
MISTAKES: list[tuple[str, str, Callable[[dict[str, Any]], None]]] = [
    *((op, f"{name} {what}", changed(name, 1, change)) for op, name in WEIGHTS for what, change in WEIGHT.items()),
    *((op, f"{name} of another dtype", changed(name, 1, lambda t: t.double())) for op, name in ADAPTER + BIASES),
    *((op, f"{name} one axis more", changed(name, 1, lambda t: t[None])) for op, name in BIASES),
    *((op, f"{name} too long", changed(name, 1, lambda t: torch.cat([t, t]))) for op, name in BIASES),
    *((op, f"{name} of one task missing", replaced(name, lambda all_of: all_of[:2])) for op, name in WEIGHTS + BIASES),
    *((op, "scale not finite", replaced("scale", lambda s: [*s[:2], float("nan")])) for op in MODULES),
    *((op, "scale of one task missing", replaced("scale", lambda s: s[:2])) for op in MODULES),
    *((op, "rows of another batch", replaced("x", lambda x: torch.cat([x, x]))) for op in MODULES),
    *((op, "rows of half the batch's tokens", replaced("x", lambda x: x[:, :3])) for op in MODULES),
    *((op, "no rows but one vector", replaced("x", lambda x: x[0, 0])) for op in MODULES),
    *((op, "batch of numbers", replaced("batch", lambda batch: IDS)) for op in MODULES),
    ("grouped_lora", "y too narrow", replaced("y", lambda y: y[..., :-1])),
    ("grouped_lora", "y flat", replaced("y", lambda y: y.reshape(5, -1))),
    ("grouped_lora", "y of fewer tokens", replaced("y", lambda y: y[:, :6])),
    ("grouped_lora", "y of another dtype on meta", replaced("y", lambda y: y.double().to("meta"))),
    ("parallel_adapter_norm", "h flat", replaced("h", lambda h: h.reshape(5, -1))),
    ("parallel_adapter_norm", "activation unknown", replaced("activation", lambda name: "gleu")),
]


@pytest.mark.parametrize(("op", "what", "mistake"), MISTAKES, ids=[f"{op}: {what}" for op, what, _ in MISTAKES])
def test_a_mistake_has_the_error_of_a_call_that_is_looked_at(
    op: str, what: str, mistake: Callable[[dict[str, Any]], None]
) -> None:
    def error() -> BaseException | None:
        given = arguments(op)
        mistake(given)
        try:
            run(op, given)
        except hk.errors.KernelError as error:
            return error
        return None

    wanted = error()
    with torch.no_grad():
        found = error()
    assert wanted is not None
    assert (type(found), str(found)) == (type(wanted), str(wanted))


def test_weights_of_several_dtypes_are_promoted() -> None:
    given = arguments("grouped_lora")
    given["a"][1] = given["a"][1].double()
    wanted = run("grouped_lora", given)
    with torch.no_grad():
        assert torch.equal(run("grouped_lora", given), wanted)


def test_weights_that_change_between_calls_are_read_anew() -> None:
    given = arguments("grouped_lora")
    with torch.no_grad():
        before = run("grouped_lora", given)
        given["a"][0].data = given["a"][0].data * 2
        after = run("grouped_lora", given)
        rows = torch.tensor(IDS) == 0
        torch.testing.assert_close((after - given["y"])[rows], 2 * (before - given["y"])[rows])
        assert torch.equal(after[~rows], before[~rows])
