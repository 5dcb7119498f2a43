"""How many calls of Python's a slot makes before its op, and that weights are found wherever torch keeps them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize

import hfadapt
from hfadapt.runtime import deltas_of
from hfadapt.testing.tiny import tiny_inputs, tiny_model

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_path.py"


def bench_path() -> Any:
    spec = importlib.util.spec_from_file_location("bench_path", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("method", "most"), [("lora", 25), ("bottleneck", 40)])
def test_a_slot_makes_few_calls_before_its_op_however_many_adapters_the_batch_has(method: str, most: int) -> None:
    count = bench_path().calls_before_op
    few, many = (count({"method": method}, tasks)["before_op"] for tasks in (2, 8))
    assert 0 < few <= most
    assert many == few


class Doubled(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@pytest.mark.parametrize(("method", "weight"), [("lora", "lora_b"), ("bottleneck", "up")])
def test_a_parametrised_weight_is_the_one_that_runs(method: str, weight: str) -> None:
    model = tiny_model("bert")
    inputs = tiny_inputs("bert")
    for name in ("a", "b"):
        hfadapt.attach(model, {"method": method, "init": "normal"}, name)
    before = model(**inputs, task_ids="a")[0]
    for _, delta in deltas_of(model, "a"):
        parametrize.register_parametrization(delta.own("a"), weight, Doubled())
    parametrised = model(**inputs, task_ids="a")[0]
    for _, delta in deltas_of(model, "a"):
        parametrize.remove_parametrizations(delta.own("a"), weight)
    assert not torch.equal(before, parametrised)
    assert torch.equal(parametrised, model(**inputs, task_ids="a")[0])


def test_functional_call_runs_the_parameters_it_is_given() -> None:
    model = tiny_model("bert")
    inputs = tiny_inputs("bert")
    hfadapt.attach(model, {"method": "lora", "init": "normal"}, "a")
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters() if "lora_b" in name}
    changed = torch.func.functional_call(model, zero, (), inputs)[0]
    with hfadapt.active(model, None):
        base = model(**inputs)[0]
    assert zero and torch.equal(changed, base)
    assert not torch.equal(model(**inputs)[0], base)
