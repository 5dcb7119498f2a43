"""Adapters of hfadapt's and of peft's on one base: the sum of both, in either order, and a save that says so."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model

import hfadapt
from hfadapt.errors import AttachError, CheckpointError
from hfadapt.testing.tiny import tiny_inputs, tiny_model

INPUTS = tiny_inputs("bert", batch=3)
OURS = {
    "same": hfadapt.LoRA(r=4, target_modules=["query", "value"]),
    "other": hfadapt.LoRA(r=4, target_modules=["key"]),
    "bottleneck": "bottleneck",
    "parallel": "parallel",
    "prefix": "prefix",
}


def base():
    torch.manual_seed(0)
    return tiny_model("bert").double().eval()


def theirs():
    return LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)


def inject(model):
    """What ``model.add_adapter(config)`` of transformers does, which takes other releases of peft."""
    return inject_adapter_in_model(theirs(), model)


def wrap(model):
    get_peft_model(model, theirs())
    return model


def fill(model):
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0].split(".")[-4:]):
            if "lora_" in name or "hfadapt" in name:
                parameter.copy_(torch.linspace(-0.2, 0.3, parameter.numel(), dtype=parameter.dtype).view_as(parameter))
    return model.eval()


def attach(model, kind, name="a"):
    hfadapt.attach(model, OURS[kind], name, train_head=False)
    return model


def answer(model, **more):
    return model(**INPUTS, **more)[0]


@pytest.mark.parametrize("put", [inject, wrap])
@pytest.mark.parametrize("kind", OURS)
def test_either_order_gives_the_sum_of_both(kind, put):
    first, last = base(), base()
    fill(put(attach(first, kind)))
    fill(attach(put(last), kind))
    torch.testing.assert_close(answer(first), answer(last), rtol=1e-9, atol=1e-9)
    assert hfadapt.verify(first) == hfadapt.verify(last)
    alone, ours = fill(put(base())), fill(attach(base(), kind))
    for model in (first, last):  # rows without ours are peft's alone
        mixed = answer(model, task_ids=["a", None, "a"])
        torch.testing.assert_close(mixed[1], answer(alone)[1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mixed[0], answer(model)[0], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(answer(model), answer(ours))
        hfadapt.detach(model)
        assert torch.equal(answer(model), answer(alone))
        assert model.state_dict().keys() == alone.state_dict().keys()


def test_a_linear_with_both_has_the_sum_of_their_updates():
    model = fill(attach(inject(base()), "same"))
    linear = model.encoder.layer[0].attention.self.query
    delta = next(iter(linear.hfadapt.deltas.values())).own("a")
    x = torch.randn(1, 2, linear.in_features, dtype=torch.float64)
    low = linear.lora_B["default"].weight @ linear.lora_A["default"].weight * linear.scaling["default"]
    weight = linear.base_layer.weight + low + delta.config.scale * delta.lora_b @ delta.lora_a
    seen = []
    handle = linear.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    answer(model)
    handle.remove()
    read, made = seen[0]
    torch.testing.assert_close(made, read @ weight.T + linear.base_layer.bias, rtol=1e-9, atol=1e-9)
    assert x.shape[-1] == read.shape[-1]
    want = answer(model)
    hfadapt.merge(model)
    torch.testing.assert_close(answer(model), want, rtol=1e-9, atol=1e-9)


def test_a_peft_model_names_the_model_inside():
    outer = get_peft_model(base(), theirs())
    with pytest.raises(AttachError, match=r"get_base_model\(\)"):
        hfadapt.attach(outer, "lora")
    fill(attach(outer.get_base_model(), "same"))
    torch.testing.assert_close(answer(outer, task_ids=["a"] * 3), answer(outer.get_base_model()), rtol=0, atol=0)


def test_peft_freezes_adapters_and_that_is_said_once(caplog):
    model = fill(wrap(attach(base(), "other"))).train()
    assert not any(p.requires_grad for name, p in model.named_parameters() if "hfadapt" in name)
    with caplog.at_level(logging.WARNING, "hfadapt"):
        answer(model), answer(model)
    assert [r.getMessage() for r in caplog.records if "peft froze them" in r.getMessage()] != []
    assert len([r for r in caplog.records if "peft froze them" in r.getMessage()]) == 1
    hfadapt.unfreeze(model)
    answer(model).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_a" in name or "lora_A" in name)


def test_a_save_says_beside_which_of_pefts_adapters_it_was_trained(tmp_path):
    model = fill(attach(inject(base()), "same"))
    hfadapt.save(model, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"trained beside.*no adapter 'default'.*PeftModel"):
        hfadapt.load(tmp_path / "ours", model=base())
    other = inject(base())
    with pytest.raises(CheckpointError, match=r"another 'default'"):
        hfadapt.load(tmp_path / "ours", model=other)
    again = fill(inject(base()))
    hfadapt.load(tmp_path / "ours", model=again)
    assert torch.equal(answer(again), answer(model))


def test_adapters_without_peft_on_a_base_with_it_are_said_to_be_so(tmp_path, caplog):
    hfadapt.save(fill(attach(base(), "other")), tmp_path)
    with caplog.at_level(logging.WARNING, "hfadapt"):
        hfadapt.load(tmp_path, model=fill(inject(base())))
    assert any("trained without peft's default" in record.getMessage() for record in caplog.records)


def test_what_peft_took_into_its_layers_is_saved_when_it_gave_it_back(tmp_path):
    model = attach(base(), "same")
    fill(model)
    want = answer(model)
    outer = get_peft_model(model, theirs()).requires_grad_(False)
    answer(model)
    with pytest.raises(CheckpointError, match=r"no other model has them there.*unload\(\)"):
        hfadapt.save(model, tmp_path / "ours")
    outer.unload()
    assert torch.equal(answer(model), want)
    hfadapt.save(model, tmp_path / "ours")
    fresh = base()
    hfadapt.load(tmp_path / "ours", model=fresh)
    assert torch.equal(answer(fresh), want)


def test_peft_layers_that_go_take_adapters_on_them_along_and_the_next_call_says_so():
    outer = get_peft_model(base(), theirs())
    fill(attach(outer.get_base_model(), "same"))
    answer(outer)
    bare = outer.merge_and_unload()
    with pytest.raises(AttachError, match=r"attention\.self\.query \(a new Linear stands there\)"):
        answer(bare)
    copy.deepcopy(bare)
