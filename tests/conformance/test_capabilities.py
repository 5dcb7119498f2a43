"""What methods say they can, they can; what they say they cannot is refused, and they say why."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import hfadapt
from hfadapt import plugins
from hfadapt.errors import AttachError, CompositionError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

METHODS = {name: method for name, method in plugins.methods().items() if hasattr(method, "capabilities")}
PLACED = [name for name in METHODS if name != "fusion"]  # a fusion is over adapters of other methods
SMALL = {
    "pal": hfadapt.PAL(8, num_heads=2),
    "prefix": hfadapt.PrefixConfig(3, mlp_size=8),
    "top_attention": hfadapt.TopAttention(8, 2, num_heads=2),
    "top_ffn": hfadapt.TopFFN(8, 2),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_cannot_has_a_reason(name: str) -> None:
    can = METHODS[name].capabilities
    words = {field.name for field in dataclasses.fields(can) if isinstance(getattr(can, field.name), bool)}
    assert {word for word in words if not getattr(can, word)} == {word for word in can.reasons if word in words}


def adapted(name: str, model_type: str = "bert"):
    model = tiny_model(model_type, "causal-lm" if model_type == "gpt2" else None)
    hfadapt.attach(model, SMALL.get(name, name), names=["a", "b"], seed=0, verify=False)
    randomize(model)
    return model


@pytest.mark.parametrize("name", PLACED)
@torch.no_grad()
def test_fusing_is_as_claimed(name: str) -> None:
    model, inputs = adapted(name), tiny_inputs("bert")
    if METHODS[name].capabilities.fusable:
        hfadapt.add_fusion(model, ("a", "b"))
        assert model(**inputs)[0].shape[:2] == inputs["input_ids"].shape
        return
    with pytest.raises(CompositionError, match="cannot be fused"):
        hfadapt.add_fusion(model, ("a", "b"))


@pytest.mark.parametrize("name", PLACED)
@torch.no_grad()
def test_merging_is_as_claimed(name: str) -> None:
    model, inputs = adapted(name), tiny_inputs("bert")
    hfadapt.detach(model, "b")
    want = model(**inputs)[0]
    if METHODS[name].capabilities.mergeable:
        hfadapt.merge(model, "a")
    else:
        with pytest.raises(AttachError, match="cannot be merged"):
            hfadapt.merge(model, "a")
    torch.testing.assert_close(model(**inputs)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in PLACED if n != "pooler"])  # no decoder has a pooler
def test_cached_decoding_is_as_claimed(name: str) -> None:
    model = adapted(name, "gpt2")
    ids = tiny_inputs("gpt2")["input_ids"]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0, "task_ids": ["a", "b", "a"]}
    assert METHODS[name].capabilities.cacheable
    assert torch.equal(model.generate(ids, **options), model.generate(ids, **options, use_cache=False))
