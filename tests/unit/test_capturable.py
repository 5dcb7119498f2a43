"""An adapted encoder can be captured by CUDA graphs: ``torch.compile(mode="reduce-overhead")`` sees one graph each way.

Inductor captures a graph whose tensors are all on the card. One that the host makes anew in each run (a table of
numbers), one that is read back, and one whose size hangs on numbers keep it from that, on a card as in a trace here.
"""

from __future__ import annotations

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import hfadapt
from hfadapt import plugins
from hfadapt.routing import lookup
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.conformance.small import SMALL

INPUTS = tiny_inputs("bert", batch=4)
IDS = torch.tensor([0, 1, -1, 0])
METHODS = ("lora", "bottleneck", "pal", "lhuc", "prefix", "mtl_lora")
#: What the host makes or reads in every run of a graph.
HOST = (
    "get_attr",
    "lift_fresh",
    "_local_scalar_dense",
    "nonzero",
    "aten.item",
    "device_put",
    "aten.copy_",
    "to_device",
)


def adapted(method, **changes):
    torch.manual_seed(0)
    model = tiny_model("bert", **changes).eval()
    for name in ("a", "b"):
        hfadapt.attach(model, SMALL.get(method, method), name, train_head=False)
    randomize(model)
    return model


def step(model, run, ids, inputs=INPUTS):
    model.zero_grad()
    output = run(**inputs, task_ids=ids)[0]
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def traced(model, call):
    """The operations of all graphs of ``call``, forward and backward."""
    graphs, found = [], []

    def keep(graph, examples):
        graphs.append(graph)
        for node in graph.graph.nodes:
            moves = "_to_copy" in str(node.target) and node.kwargs.get("device") is not None
            found.append("to_device" if moves else "get_attr" if node.op == "get_attr" else str(node.target))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    call(torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep)))
    torch._dynamo.reset()
    return graphs, found


def of_the_host(found):
    return [target for target in found if any(word in target for word in HOST)]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_one_graph_each_way_and_takes_nothing_from_the_host(method):
    assert plugins.methods()[method]
    # A trace takes its time for each layer; a second one shows more where layers share parameters.
    model = adapted(method, num_hidden_layers=2 if method == "pal" else 1)
    graphs, found = traced(model, lambda run: step(model, run, IDS))
    assert len(graphs) == 2 and not of_the_host(found), (method, of_the_host(found))


def test_compositions_and_places_that_some_adapters_lack_take_nothing_either():
    """Here an id is not the number of its adapter: the table is arithmetic."""
    model = adapted("lora", num_hidden_layers=1)
    hfadapt.attach(model, hfadapt.LoRA(r=2, target_modules=["key"]), "c", train_head=False)
    hfadapt.compose(model, "mean", hfadapt.Average("a", "c"))
    graphs, found = traced(model, lambda run: step(model, run, torch.tensor([0, 3, -1, 2])))
    assert len(graphs) == 2 and not of_the_host(found), of_the_host(found)


@pytest.mark.parametrize(
    "way",
    [
        lambda x: x * torch.tensor((0.5, 2.0, 4.0)),
        lambda x: x * torch.arange(3.0)[torch.tensor([0, 2, 1])],
    ],
    ids=["a table", "an index"],
)
def test_the_look_at_graphs_sees_what_the_host_makes(way):
    model = torch.nn.Linear(3, 3)
    model.register_forward_hook(lambda module, args, output: way(output))
    with torch.no_grad():
        _, found = traced(model, lambda run: run(torch.ones(2, 3)))
    assert of_the_host(found)


def test_entries_are_those_of_a_table_traced_or_not(monkeypatch):
    ids = torch.arange(-1, 6)
    tables = [[0, 1, 2, 3, 4, 5], [-1] * 6, [0] * 6, [3, 4, 5, 0, 1, 2], [-1, 0, 1, -1, 2, 2], [0, -1, 2, 1, 1, 5]]
    for traced_now in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda now=traced_now: now)
        for table in tables:
            assert torch.equal(lookup.looked_up(ids, table), torch.tensor([-1, *table])[ids + 1]), table


def test_ids_out_of_range_are_asserted_in_the_graph():
    model = adapted("lhuc", num_hidden_layers=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(**INPUTS, task_ids=IDS)
        for wrong in (2, -2):
            with pytest.raises(RuntimeError, match=r"neither -1 nor 0\.\.1; .*nonzero\(\) gives its row"):
                compiled(**INPUTS, task_ids=torch.tensor([0, wrong, -1, 0]))
    torch._dynamo.reset()


@pytest.mark.compile
def test_reduce_overhead_gives_the_numbers_of_the_plain_model_as_ids_change():
    """On a card it is captured, and torch's own count says that nothing kept it from that."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = adapted("lora", num_hidden_layers=1).to(device)
    inputs = {key: value.to(device) for key, value in INPUTS.items()}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    for ids in ([0, 1, -1, 0], [1, 1, 0, -1], [0, 0, 1, 1], [-1, 1, 0, 0]):
        task_ids = torch.tensor(ids, device=device)
        for ours, want in zip(*(step(model, run, task_ids, inputs) for run in (compiled, model)), strict=True):
            torch.testing.assert_close(ours, want, rtol=1e-3, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    if device == "cuda":
        assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    torch._dynamo.reset()
