"""The published code of the PALs paper as formulas: they equal the goldens here, and stand for those that are not."""

from __future__ import annotations

import json

import golden_pals
import pytest
import torch
from formula_pals import TASKS, Formula, layout
from golden_files import close
from golden_pals import Golden, Reference, available, read
from torch import Tensor

INDEX = json.loads((golden_pals.DATA / "index.json").read_text())
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MISSING = [name for name in INDEX if name not in available()]


@pytest.mark.parametrize("name", INDEX)
def test_layout_has_as_many_weights_as_the_code_says(name: str) -> None:
    shapes = layout(INDEX[name]["config"], INDEX[name]["placement"])
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert count == TASKS * INDEX[name]["extra_params_per_task"]
    assert len(shapes) == INDEX[name]["n_tensors"] - INDEX["shared"]["n_tensors"]


@pytest.mark.parametrize("name", available())
def test_formulas_equal_the_goldens(name: str) -> None:
    golden = read(name)
    task_weights = {k: tuple(v.shape) for k, v in golden.weights.items() if "mult_" in k or "multi_" in k}
    assert task_weights == layout(golden.config, golden.placement)
    formula = Formula(golden.weights, golden.config, golden.placement)
    for task in range(TASKS):
        for key, value in formula(*(golden.input(n) for n in INPUTS), task).items():
            close(value, golden.output(f"task{task}.{key}"), key)


@pytest.mark.parametrize("name", MISSING)
def test_what_has_no_golden_here_equals_the_formulas(name: str) -> None:
    """The map of options and names with complete weights: hidden states and gradients of both tasks."""
    shared = read("shared")
    config, placement = INDEX[name]["config"], INDEX[name]["placement"]
    generator = torch.Generator().manual_seed(3)
    made = {
        k: 0.3 * torch.randn(s, generator=generator, dtype=torch.float64) for k, s in layout(config, placement).items()
    }
    made = {k: (v + 1 if k.endswith("gamma") else v).requires_grad_() for k, v in made.items()}
    given = {k: v for k, v in shared.tensors.items() if k.startswith(("weight.", "input."))}
    golden = Golden(config, given | {f"weight.{k}": v.detach() for k, v in made.items()}, placement)
    model = Reference(golden)
    formula = Formula(shared.weights | made, config, placement)
    for task in range(TASKS):
        model.zero_grad()
        found, wanted = model(task), formula(*(golden.input(n) for n in INPUTS), task)
        for key, value in wanted.items():
            close(found[key], value.detach(), f"task {task} {key}")
        found["pooled"].square().sum().backward()
        gradients = torch.autograd.grad(wanted["pooled"].square().sum(), list(made.values()), allow_unused=True)
        ours = model.named_gradients(task)
        for key, gradient in zip(made, gradients, strict=True):
            close(_or_zero(ours[key], made[key]), _or_zero(gradient, made[key]), f"task {task} gradient of {key}")


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
