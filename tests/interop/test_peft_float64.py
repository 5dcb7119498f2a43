"""What peft saved in float64 is computed in float64, and written so: no digit is lost on the way."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import hfadapt
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

# model type, head, and linears by peft's names
BASES = {"gpt2": ("causal-lm", ["c_attn", "c_proj"]), "llama": ("causal-lm", ["q_proj", "down_proj"])}

OPTIONS = {
    "plain": {},
    "lengths of DoRA": {"use_dora": True},
    "biases of the linears": {"bias": "lora_only"},
    "a bias of B": {"lora_bias": True},
}


def base(model_type):
    torch.manual_seed(0)
    return tiny_model(model_type, BASES[model_type][0]).double().eval()


@torch.no_grad()
def logits(model, model_type):
    return model.eval()(**tiny_inputs(model_type, BASES[model_type][0])).logits


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("model_type", BASES)
def test_both_ways_of_a_lora_keep_every_digit(tmp_path, model_type, options):
    config = LoraConfig(r=3, lora_alpha=5, target_modules=BASES[model_type][1], **options)
    theirs = get_peft_model(base(model_type), config)
    torch.manual_seed(1)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.double() + 0.2 * torch.randn_like(parameter, dtype=torch.float64)
    theirs.save_pretrained(tmp_path / "theirs")
    want = logits(theirs, model_type)
    mine = hfadapt.load(tmp_path / "theirs", base(model_type))
    torch.testing.assert_close(logits(mine, model_type), want, rtol=1e-12, atol=1e-12)
    hfadapt.export(mine, tmp_path / "mine", format="peft")
    again = hfadapt.load(tmp_path / "mine", base(model_type))
    torch.testing.assert_close(logits(again, model_type), want, rtol=1e-12, atol=1e-12)
    back = PeftModel.from_pretrained(base(model_type), tmp_path / "mine")
    torch.testing.assert_close(logits(back, model_type), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", ["flat", "mlp"])
def test_a_prefix_is_written_with_every_digit(tmp_path, network):
    mine = base("llama")
    hfadapt.attach(mine, hfadapt.PrefixConfig(4, reparametrization=network, tokens="behind"))
    randomize(mine)
    hfadapt.export(mine, tmp_path / "out", format="peft")
    again = hfadapt.load(tmp_path / "out", base("llama"))
    torch.testing.assert_close(logits(again, "llama"), logits(mine, "llama"), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(logits(mine, "llama"), logits(base("llama"), "llama"), atol=1e-3)
