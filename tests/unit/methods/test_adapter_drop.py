"""AdapterDrop with any method: dropped layers are the base, and back-propagation stops at the lowest active delta."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.errors import AttachError
from hfadapt.testing.tiny import tiny_inputs, tiny_model

METHODS = {
    "low_rank": hfadapt.LowRank(4, init="normal"),
    "pal": hfadapt.PAL(8, num_heads=2, init="normal", dropout=0.0),
    "houlsby": "houlsby",
    "pfeiffer": "pfeiffer",
    "par_bn": hfadapt.Bottleneck(4, is_parallel=True),
    "lhuc": "lhuc",
    "lora": hfadapt.LoRA(4),
    "prefix": "prefix",
    "houlsby_one_for_all": hfadapt.Houlsby(share=True),
}


def adapted(model_type: str, method, layers: int = 4):
    names = {"bart": ("encoder_layers", "decoder_layers"), "gpt2": ("n_layer",)}.get(model_type, ("num_hidden_layers",))
    model = tiny_model(model_type, **{name: layers for name in names}).eval()
    hfadapt.attach(model, method, names=["a", "b"], seed=0)
    with torch.no_grad():
        for name in "ab":
            for parameter in hfadapt.parameters_of(model, name).values():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "bart"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_dropping_every_layer_gives_the_base_bit_for_bit(method: str, model_type: str) -> None:
    model, inputs = adapted(model_type, METHODS[method]), tiny_inputs(model_type, batch=2, padding="right")
    with hfadapt.active(model, None):
        base = model(**inputs)[0]
    assert not torch.equal(model(**inputs, task_ids="a")[0], base)
    hfadapt.set_adapter_drop(model, 4)
    assert torch.equal(model(**inputs, task_ids="a")[0], base)
    assert torch.equal(model(**inputs, task_ids=["a", "b"])[0], base)


@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_depth_drops_exactly_the_lowest_layers(method: str, depth: int) -> None:
    """Hidden states below the depth are the base's, and the first one above differs."""
    model, inputs = adapted("bert", METHODS[method]), tiny_inputs("bert", batch=2, padding="right")
    with hfadapt.active(model, None):
        base = model(**inputs, output_hidden_states=True).hidden_states
    hfadapt.set_adapter_drop(model, depth)
    dropped = model(**inputs, task_ids="a", output_hidden_states=True).hidden_states
    same = [torch.equal(x, y) for x, y in zip(base, dropped, strict=True)]
    assert same == [layer <= depth for layer in range(5)]


@pytest.mark.parametrize("depth", [0, 1, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_backward_stops_at_the_lowest_active_delta(method: str, depth: int) -> None:
    """No gradient enters a layer below, none is computed for the base, and dropped adapters get none (trap 32)."""
    model, inputs = adapted("bert", METHODS[method]), tiny_inputs("bert", batch=2, padding="right")
    head = torch.nn.Linear(32, 2)
    hfadapt.set_adapter_drop(model, depth)
    hidden = model(**inputs, task_ids="a", output_hidden_states=True)
    reached = [state.requires_grad for state in hidden.hidden_states]
    assert reached == [layer > depth for layer in range(5)], "a hidden state below is part of the graph"
    head(hidden[0]).sum().backward()
    assert head.weight.grad is not None, "with every layer dropped the head still trains"
    for name, parameter in model.named_parameters():
        if ".hfadapt." not in name and not name.startswith("hfadapt_shared"):
            assert parameter.grad is None, f"gradient of the base: {name}"
        elif name.startswith("encoder.layer.") and int(name.split(".")[2]) < depth:
            assert parameter.grad is None, f"gradient of a dropped adapter: {name}"
    if depth < 4:
        assert any(p.grad is not None for p in hfadapt.parameters_of(model, "a").values())


@pytest.mark.parametrize(("stack", "other"), [("encoder", "decoder"), ("decoder", "encoder")])
@torch.no_grad()
def test_the_stacks_of_an_encoder_decoder_are_dropped_on_their_own(stack: str, other: str) -> None:
    model, inputs = adapted("bart", "houlsby"), tiny_inputs("bart", batch=2)

    def states(which: str):
        out = model(**inputs, task_ids="a", output_hidden_states=True)
        return out.encoder_hidden_states if which == "encoder" else out.decoder_hidden_states

    full = states("encoder")
    with hfadapt.active(model, None):
        base_out = model(**inputs, output_hidden_states=True)
    hfadapt.set_adapter_drop(model, {stack: 4})
    if stack == "encoder":
        assert all(torch.equal(x, y) for x, y in zip(states("encoder"), base_out.encoder_hidden_states, strict=True))
        assert not torch.equal(states("decoder")[-1], base_out.decoder_hidden_states[-1])
    else:
        assert all(torch.equal(x, y) for x, y in zip(states("encoder"), full, strict=True))


def test_more_layers_than_there_are_and_unknown_stacks_are_refused() -> None:
    model = adapted("bert", "houlsby")
    for bad in (5, -1, True, {"encoder": 9}):
        with pytest.raises(AttachError, match="0 to 4"):
            hfadapt.set_adapter_drop(model, bad)
    with pytest.raises(AttachError, match="no such stack"):
        hfadapt.set_adapter_drop(model, {"decoder": 1})


@torch.no_grad()
def test_depth_counts_calls_where_layers_are_shared() -> None:
    model = tiny_model("albert", num_hidden_layers=3).eval()
    inputs = tiny_inputs("albert", batch=2)
    hfadapt.attach(model, "houlsby", seed=0)
    with hfadapt.active(model, None):
        base = model(**inputs, output_hidden_states=True).hidden_states
    hfadapt.set_adapter_drop(model, 2)
    dropped = model(**inputs, output_hidden_states=True).hidden_states
    assert [torch.equal(x, y) for x, y in zip(base, dropped, strict=True)] == [True, True, True, False]
