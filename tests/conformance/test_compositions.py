"""Every composition with every method: what it must equal, or why it is refused."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt import plugins
from hfadapt.errors import CompositionError
from hfadapt.testing.conformance import output, randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

SMALL = {
    "mam": hfadapt.MAM({"num_virtual_tokens": 3, "mlp_size": 8}, {"r": 4}),
    "pal": hfadapt.PAL(8, num_heads=2),
    "parallel": hfadapt.ParallelConfig(4),
    "prefix": hfadapt.PrefixConfig(3, mlp_size=8),
    "top_attention": hfadapt.TopAttention(8, 2, num_heads=2),
    "top_ffn": hfadapt.TopFFN(8, 2),
    "unipelt": hfadapt.UniPELT({"num_virtual_tokens": 3, "mlp_size": 8}, None, {"r": 2}),
}
METHODS = [name for name in plugins.methods() if name != "fusion"]
CLOSE = {"rtol": 0, "atol": 1e-9}


def adapted(method, model_type: str = "bert"):
    model = tiny_model(model_type).double()
    hfadapt.attach(model, method, names=["a", "b", "none"], seed=0, verify=False)
    randomize(model)
    return model, tiny_inputs(model_type, padding="right")


@pytest.mark.parametrize("model_type", ["bert", "bart"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_stacks_averages_copies_and_rows(method: str, model_type: str) -> None:
    if method == "pooler" and model_type == "bart":
        return  # which has none
    model, inputs = adapted(SMALL.get(method, method), model_type)
    alone = {name: output(model, inputs, task_ids=name) for name in ("a", "b")}

    def run(node, **call):
        with hfadapt.active(model, node):
            return output(model, inputs, **call)

    assert not torch.allclose(alone["a"], alone["b"], rtol=0, atol=1e-6)
    torch.testing.assert_close(run(hfadapt.Stack("a")), alone["a"], **CLOSE)
    torch.testing.assert_close(run(hfadapt.Average("b", weights=(1.0,))), alone["b"], **CLOSE)
    torch.testing.assert_close(run(hfadapt.Average("a", "b", weights=(0.0, 1.0))), alone["b"], **CLOSE)
    torch.testing.assert_close(run(hfadapt.Average("a", "a")), alone["a"], **CLOSE)
    with hfadapt.active(model, None):
        base = output(model, inputs)
    torch.testing.assert_close(run(hfadapt.Average("a", "b", weights=(0.0, 0.0))), base, **CLOSE)
    stack, mean = run(hfadapt.Stack("a", "b")), run(hfadapt.Average("a", "b"))
    for one in (stack, mean) if method != "pooler" else (mean,):  # poolers read the same, so that the last one stands
        assert min((one - other).abs().max() for other in alone.values()) > 1e-7
    together = run(hfadapt.Parallel("a", hfadapt.Stack("a", "b"), hfadapt.Average("a", "b")))
    torch.testing.assert_close(together, torch.cat([alone["a"], stack, mean]), **CLOSE)
    hfadapt.compose(model, "stack", hfadapt.Stack("a", "b"))
    hfadapt.compose(model, "mean", hfadapt.Average("a", "b"))
    rows = output(model, inputs, task_ids=["mean", "b", "stack"])
    torch.testing.assert_close(rows, torch.stack([mean[0], alone["b"][1], stack[2]]), **CLOSE)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_fusions_attend_or_are_refused_with_a_reason(method: str) -> None:
    model, inputs = adapted(SMALL.get(method, method))
    with torch.no_grad():
        mine, other = (hfadapt.parameters_of(model, name) for name in ("a", "b"))
        for one, two in zip(mine.values(), other.values(), strict=True):
            two.copy_(one)
    alone = output(model, inputs, task_ids="a")
    try:
        hfadapt.add_fusion(model, ("a", "b"), "static")
    except CompositionError as error:
        parts = {config.method for config in hfadapt.attachment(model).adapters["a"].configs}
        assert any(part in str(error) for part in parts) and "try: " in str(error)
        assert torch.equal(output(model, inputs, task_ids="a"), alone)
        return
    # weights of a softmax sum to one, so equal adapters mix to themselves
    torch.testing.assert_close(output(model, inputs), alone, **CLOSE)
