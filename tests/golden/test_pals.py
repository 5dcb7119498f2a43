"""PALs, low-rank layers, LHUC, Houlsby-like and top models equal the published code in float64."""

from __future__ import annotations

import golden_pals
import pytest
import torch
from golden_files import close, starting_with
from golden_pals import TASKS, Reference, read

import hfadapt

NAMES = golden_pals.available()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_losses_and_gradients(name: str, implementation: str) -> None:
    golden = read(name)
    model = Reference(golden, attn_implementation=implementation)
    for task in range(len(TASKS)):
        model.zero_grad()
        found = model(task)
        for key, value in found.items():
            close(value, golden.output(f"task{task}.{key}"), f"{name} task {task} {key}")
        found["loss"].sum().backward()
        gradients = model.named_gradients(task)
        wanted = starting_with(golden.tensors, f"output.task{task}.grad.")
        assert wanted
        for key, value in wanted.items():
            gradient = gradients[key]
            assert gradient is not None, f"{name}: no gradient of {key}"
            close(gradient, value, f"{name} gradient of {key}")


@pytest.mark.parametrize("name", [n for n in NAMES if n != "shared"])
def test_both_tasks_in_one_batch_equal_each_alone(name: str) -> None:
    golden = read(name)
    model = Reference(golden)
    names = ("input_ids", "attention_mask", "token_type_ids")
    ids = ["task1", "task0", "task1"]
    with torch.no_grad():
        mixed = model.bert(**{n: golden.input(n) for n in names}, task_ids=ids, output_hidden_states=True)
    for layer, hidden in enumerate(mixed.hidden_states[1:]):
        for row, task in enumerate(ids):
            close(hidden[row], golden.output(f"{task}.hidden.{layer}")[row], f"layer {layer} row {row}")


@pytest.mark.parametrize("name", [n for n in NAMES if "output.module.ts0.out" in read(n).tensors])
def test_task_function_alone(name: str) -> None:
    """The task function of the first adapted layer, on the embedding output (trap 1: it reads the layer's input)."""
    golden = read(name)
    model = Reference(golden)
    state = hfadapt.attachment(model.bert)
    from hfadapt.routing import Routing, Rows
    from hfadapt.routing.forward_pass import Pass, StackInputs
    from hfadapt.runtime.attachment import deltas_of
    from hfadapt_kernels import TaskBatch

    source = golden.output("module.ts.in")
    for task, name_of_task in enumerate(TASKS):
        _, delta = next(iter(deltas_of(model.bert, name_of_task)))
        given = StackInputs(golden.input("attention_mask"))
        routing = Routing(state.names, state.steps, None, task, source.shape[0], given, Pass())
        leaf = model.bert.get_submodule(delta.site.leaf)
        rows = Rows((name_of_task,), TaskBatch.single(source.shape[0]), routing, leaf)
        with torch.no_grad():
            close(delta(torch.zeros_like(source), source, rows), golden.output(f"module.ts{task}.out"), name)
