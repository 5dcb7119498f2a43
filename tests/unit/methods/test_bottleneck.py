"""Bottleneck adapters: norms, shared parameters, half precision."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import hfadapt
from hfadapt.errors import AttachError
from hfadapt.runtime.attachment import deltas_of
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt_plugins.methods.bottleneck import LayerNorms


@torch.no_grad()
def test_pfeiffer_uses_the_norm_of_its_own_layer_twice() -> None:
    """LN2(f + a + u(LN2(f + a))), with each layer's own LN2 (traps 36 and 38)."""
    model = tiny_model("bert").double().eval()
    for layer in model.encoder.layer:
        layer.output.LayerNorm.weight.normal_(1, 0.3)
    hfadapt.attach(model, "pfeiffer", seed=0)
    entered = {}
    for number, layer in enumerate(model.encoder.layer):
        layer.output.dropout.register_forward_hook(lambda m, a, out, n=number: entered.update({n: out.clone()}))
        layer.attention.output.LayerNorm.register_forward_hook(
            lambda m, a, out, n=number: entered.update({-1 - n: out})
        )
    hidden = model(**tiny_inputs("bert"), output_hidden_states=True).hidden_states
    for number, layer in enumerate(model.encoder.layer):
        norm = layer.output.LayerNorm
        total = entered[number] + entered[-1 - number]
        z = F.layer_norm(total, total.shape[-1:], norm.weight, norm.bias, norm.eps)
        w = next(iter(norm.hfadapt.deltas.values())).adapters["default"]
        u = F.linear(F.linear(z, w.down, w.down_bias).relu(), w.up, w.up_bias)
        want = F.layer_norm(total + u, total.shape[-1:], norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(hidden[number + 1], want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_as_near_to_float32_as_the_base_is(dtype: torch.dtype) -> None:
    """Trap 36: sums and norms are computed in float32, also when activations are large."""
    inputs = tiny_inputs("bert")
    errors = {}
    for method in (None, "pfeiffer"):
        exact = tiny_model("bert").eval()
        for layer in exact.encoder.layer:
            layer.output.dense.weight.mul_(300)
        if method:
            hfadapt.attach(exact, method, seed=0)
        half = copy.deepcopy(exact).to(dtype)
        want = exact(**inputs)[0]
        got = half(**inputs)[0]
        assert got.dtype == dtype and got.isfinite().all()
        errors[method] = (got.float() - want).abs().max().item()
    assert errors["pfeiffer"] <= 3 * errors[None] + 1e-3


def test_one_adapter_for_all_layers_is_one_set_of_parameters(tmp_path) -> None:
    model = tiny_model("bert").eval()
    handle = hfadapt.attach(model, hfadapt.Houlsby(size=4, share=True), names=["a", "b"], seed=0)
    assert handle.num_parameters() == 2 * 2 * (2 * 32 * 4 + 4 + 32)  # adapters, sub-layers
    pointers = {}
    for _, delta in deltas_of(model, "a"):
        pointers.setdefault(delta.site.slot, set()).add(delta.weights("down", ["a"])[0].data_ptr())
    assert all(len(found) == 1 for found in pointers.values()) and len(pointers) == 2
    hfadapt.save(model, tmp_path)
    fresh = tiny_model("bert").eval()
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if "hfadapt" not in k})
    with torch.no_grad():
        want = model(**tiny_inputs("bert"), task_ids="b")[0]
        assert torch.equal(hfadapt.load(tmp_path, fresh)(**tiny_inputs("bert"), task_ids="b")[0], want)


def test_configs_survive_json() -> None:
    config = hfadapt.Bottleneck(8, on=("attention", "ffn"), norms=LayerNorms(original_ln_before=True), layers=(0, 1))
    assert hfadapt.Bottleneck.from_dict(config.to_dict()) == config


def test_options_that_a_model_cannot_have_are_refused() -> None:
    with pytest.raises(AttachError, match="cross-attention"):
        hfadapt.attach(tiny_model("bert"), hfadapt.Bottleneck(4, on=("cross",)))
    zero = LayerNorms(original_ln_before=True, residual_before_ln=False)
    with pytest.raises(AttachError, match="norm behind the sub-layer"):
        hfadapt.attach(tiny_model("gpt2"), hfadapt.Bottleneck(4, norms=zero))
    with pytest.raises(AttachError, match="original_ln_before=True"):
        hfadapt.attach(tiny_model("bert"), hfadapt.Bottleneck(4, norms=LayerNorms(residual_before_ln=False)))


@pytest.mark.parametrize("block", ["nice", "glow"])
@torch.no_grad()
def test_an_invertible_adapter_is_inverted_exactly(block: str) -> None:
    from hfadapt_plugins.methods.invertible.coupling import coupling

    function = coupling(hfadapt.Invertible(block=block), 9).double()
    for parameter in function.parameters():
        parameter.normal_()
    x = torch.randn(2, 5, 9, dtype=torch.float64)
    assert not torch.allclose(function(x), x)
    torch.testing.assert_close(function(function(x), inverse=True), x, rtol=0, atol=1e-8)
