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
    "prefix": hfadapt.PrefixConfig(3, mlp_size=8),
    "parallel": hfadapt.ParallelConfig(4, sublayers="both"),
    "mam": hfadapt.MAM({"num_virtual_tokens": 3, "mlp_size": 8}, {"r": 4}),
    "unipelt": hfadapt.UniPELT({"num_virtual_tokens": 3, "mlp_size": 8}, None, {"r": 2}),
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


@pytest.mark.parametrize("depth", [0, 2, 4])
def test_backward_hooks_below_the_depth_never_fire_under_gradient_checkpointing(depth: int) -> None:
    """A layer whose input needs no gradient is not run a second time either."""
    model, inputs = adapted("bert", METHODS["mam"]).train(), tiny_inputs("bert", batch=2, padding="right")
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    hfadapt.set_adapter_drop(model, depth)
    backward, forward = [], []
    for index, layer in enumerate(model.encoder.layer):
        layer.output.dense.register_forward_hook(lambda *_, index=index: forward.append(index))
        layer.output.dense.register_full_backward_hook(lambda *_, index=index: backward.append(index))
    head = torch.nn.Linear(32, 2)
    head(model(**inputs, task_ids="a")[0]).sum().backward()
    assert head.weight.grad is not None
    assert sorted(set(backward)) == list(range(depth, 4))
    assert [forward.count(index) for index in range(4)] == [1] * depth + [2] * (4 - depth)


@pytest.mark.parametrize(("drop", "encoder", "decoder"), [
    ({"encoder": 4}, 4, 0), ({"encoder": 2}, 2, 0), ({"decoder": 3}, 0, 0), ({"encoder": 4, "decoder": 3}, 4, 3),
])  # fmt: skip
def test_backward_stops_in_each_stack_of_an_encoder_decoder(drop: dict, encoder: int, decoder: int) -> None:
    """An encoder without active deltas is not in the graph; one with them needs every decoder layer above."""
    model, inputs = adapted("bart", METHODS["houlsby"]), tiny_inputs("bart", batch=2)
    hfadapt.set_adapter_drop(model, drop)
    out = model(**inputs, task_ids="a", output_hidden_states=True)
    assert [h.requires_grad for h in out.encoder_hidden_states] == [layer > encoder for layer in range(5)]
    # Layer 0 of the decoder reads the encoder's states.
    assert [h.requires_grad for h in out.decoder_hidden_states] == [layer > decoder for layer in range(5)]


@torch.no_grad()
def test_a_model_trained_at_one_depth_is_evaluated_at_any() -> None:
    """Depth n of one model is a model whose adapters are on the layers above n alone (``layers=...``)."""
    model, inputs = adapted("bert", hfadapt.Houlsby(reduction_factor=4)), tiny_inputs("bert", batch=2, padding="right")
    for depth in (1, 3):
        fixed = adapted("bert", hfadapt.Houlsby(reduction_factor=4, layers=tuple(range(depth, 4))))
        kept = hfadapt.parameters_of(model, "a")
        for path, parameter in hfadapt.parameters_of(fixed, "a").items():
            parameter.copy_(kept[path])
        hfadapt.set_adapter_drop(model, depth)
        assert torch.equal(model(**inputs, task_ids="a")[0], fixed(**inputs, task_ids="a")[0])


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
    for bad in (5, -1, True, 1.5, "1", {"encoder": 9}):
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
