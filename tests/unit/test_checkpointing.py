"""Activation checkpointing, in both forms, changes no gradient: each method, over a frozen base."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.releases import checkpoint_activations, skip_without_attention_functions

METHODS = ["lora", "pal", "low_rank", "par_bn", "pfeiffer", "prefix", "mam", "unipelt"]


def adapted(model_type: str, method: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = tiny_model(model_type).double()
    hfadapt.attach(model, method)
    randomize(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def gradients(model: torch.nn.Module, model_type: str, direct: bool = False) -> dict[str, torch.Tensor]:
    call = model.forward if direct else model
    call(**tiny_inputs(model_type), use_cache=False)[0].pow(2).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("direct", [False, True], ids=["call", "forward"])
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved-hooks", "reentrant"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_without_checkpointing(
    method: str, model_type: str, use_reentrant: bool, direct: bool
) -> None:
    skip_without_attention_functions(model_type)
    want = gradients(adapted(model_type, method), model_type)
    model = adapted(model_type, method)
    checkpoint_activations(model, use_reentrant=use_reentrant)
    got = gradients(model, model_type, direct)
    assert want and got.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12)
