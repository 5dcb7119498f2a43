"""An encoder with adapters of each family is one graph under ``torch.compile``, whichever rows a batch holds."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

INPUTS = tiny_inputs("bert", batch=4)
FAMILIES = {
    "lora": "lora",
    "pal": hfadapt.PAL(size=12, dropout=0.0),
    "lhuc": "lhuc",
    "mam": "mam",  # a prefix and a parallel adapter
}


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_rows_are_one_graph_forward_and_backward(family):
    torch.manual_seed(0)
    model = tiny_model("bert", num_hidden_layers=1).eval()  # a trace takes its time for each layer
    for name in ("a", "b"):
        hfadapt.attach(model, FAMILIES[family], name, train_head=False)
    randomize(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for ids in ([0, 1, -1, 0], [1, 1, 0, -1]):  # another batch runs the same graph
        task_ids = torch.tensor(ids)
        found = []
        for run in (compiled, model):
            output = run(**INPUTS, task_ids=task_ids)[0]
            model.zero_grad()
            output.square().sum().backward()
            found.append([output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        for ours, want in zip(*found, strict=True):
            torch.testing.assert_close(ours, want, rtol=1e-3, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
