"""Beside kernels that take the place of a module's ``forward``, as transformers' ``use_kernels`` puts them there.

A kernel for a whole MLP reads the weights of its linears and never calls them, so an adapter there would be still. Each
slot is proven to fire, at attach and in the first forward after it. Where the kernel leaves the adapted modules alone,
the numbers are those of the stock model.
"""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F

import hfadapt
from hfadapt.testing.tiny import tiny_inputs, tiny_model


def _mlp(self, x):
    gate, up = F.linear(x, self.gate_proj.weight), F.linear(x, self.up_proj.weight)
    return F.linear(F.silu(gate) * up, self.down_proj.weight)


def _norm(self, x):
    return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.variance_epsilon).to(x.dtype)


def kernelize(model):
    """What ``kernels.kernelize`` does: another ``forward`` in the instance, by the class of the layer."""
    kinds = {"LlamaMLP": _mlp, "LlamaRMSNorm": _norm}
    for module in model.modules():
        if type(module).__name__ in kinds:
            module.forward = types.MethodType(kinds[type(module).__name__], module)


def adapted(targets, *, before=False, after=False):
    torch.manual_seed(0)
    model = tiny_model("llama")
    if before:
        kernelize(model)
    hfadapt.attach(model, hfadapt.LoRA(r=4, target_modules=targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hfadapt" in name:
                parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    if after:
        kernelize(model)
    return model


@pytest.mark.parametrize("when", ["before", "after"])
def test_adapters_that_a_kernel_leaves_alone_give_the_stock_numbers(when):
    inputs = tiny_inputs("llama", batch=2)
    model, stock = adapted(["q_proj"], **{when: True}), adapted(["q_proj"])
    ours, theirs = model(**inputs)[0], stock(**inputs)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for result, of in ((ours, model), (theirs, stock)):
        result.square().sum().backward()
        of.grads = [p.grad for name, p in of.named_parameters() if "hfadapt" in name]
    for a, b in zip(model.grads, stock.grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert hfadapt.verify(model)


def test_a_kernel_that_never_calls_an_adapted_linear_is_refused_at_attach():
    with pytest.raises(hfadapt.errors.AttachError, match=r"never run.*gate_proj.*fused kernels that bypass"):
        adapted(["gate_proj", "down_proj"], before=True)


def test_a_kernel_that_comes_after_attach_is_refused_by_the_first_forward():
    model = adapted(["gate_proj", "down_proj"], after=True)
    for call in (lambda: model(**tiny_inputs("llama", batch=2)), lambda: hfadapt.verify(model)):
        with pytest.raises(hfadapt.errors.AttachError, match=r"never run.*gate_proj.*fused kernels that bypass"):
            call()


def test_a_kernel_that_comes_after_the_first_forward_is_seen_by_verify():
    model = adapted(["gate_proj"])
    model(**tiny_inputs("llama", batch=2))
    kernelize(model)
    with pytest.raises(hfadapt.errors.AttachError, match=r"never run.*gate_proj"):
        hfadapt.verify(model)
