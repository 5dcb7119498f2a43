"""``merge`` and the perturbed word embeddings of regularizers beside kernels and patched classes.

Nothing of either stays still: a merged model computes with the merged weights whatever runs its forwards, and what is
added to the words reaches the answers, or an error says what is in the way.
"""

from __future__ import annotations

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hfadapt
from hfadapt.errors import ArchitectureError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.training.regularizers import perturbed, word_embeddings
from tests.interop.kernelized import RAN, use_kernels

INPUTS = tiny_inputs("llama", batch=3)
MERGED = {
    "by role": ("lora", {}),
    "by name": (hfadapt.LoRA(r=4, target_modules=["o_proj", "down_proj"]), {}),
    "norms": ((), {"modules_to_save": ["norm", "input_layernorm"]}),
    "both": (hfadapt.LoRA(r=4, target_modules=["o_proj"]), {"modules_to_save": ["norm"]}),
}


def base():
    torch.manual_seed(0)
    return tiny_model("llama").double().eval()


def adapted(model, kind):
    method, more = MERGED[kind]
    hfadapt.attach(model, method, "a", seed=1, **more)
    randomize(model)
    return model


def answer(model):
    return model(**INPUTS)[0]


@pytest.mark.parametrize("when", ["before attach", "before merge", "after merge"])
@pytest.mark.parametrize("kind", MERGED)
def test_a_merged_model_has_the_adapted_numbers_under_its_kernels_and_gives_them_back(kind, when):
    with torch.no_grad():
        want = answer(adapted(base(), kind))
        model = use_kernels(base()) if when == "before attach" else base()
        plain = {name: p.clone() for name, p in model.named_parameters()}
        adapted(model, kind)
        if when == "before merge":
            use_kernels(model)
        merged = hfadapt.merge(model)
        if when == "after merge":
            use_kernels(model)
        for mode in (False, True):
            model.train(mode)
            RAN.clear()
            torch.testing.assert_close(answer(model), want, rtol=1e-8, atol=1e-9)
            assert set(RAN) == {"training" if mode else "inference"}
        torch.testing.assert_close(answer(copy.deepcopy(model)), want, rtol=1e-8, atol=1e-9)
        merged.unmerge()
        torch.testing.assert_close(answer(model.eval()), want, rtol=1e-8, atol=1e-9)
        assert hfadapt.verify(model)
        hfadapt.detach(model)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, plain[name]), name
        torch.testing.assert_close(answer(model), answer(base()), rtol=1e-8, atol=1e-9)


def test_a_kernel_that_reads_the_weights_of_an_mlp_reads_the_merged_ones():
    """Such a kernel lets no adapter work inside, and computes with whatever weights are there."""
    model = adapted(base(), "by name")
    with torch.no_grad():
        want = answer(model)
        hfadapt.merge(model)
        use_kernels(model, "LlamaMLP")
        torch.testing.assert_close(answer(model), want, rtol=1e-8, atol=1e-9)


def test_an_adapter_that_a_kernel_silenced_is_not_merged_unnoticed():
    """The numbers of the call before the merge are those without it: a merge would change them in silence."""
    model = adapted(base(), "by name")
    answer(model)
    use_kernels(model, "LlamaMLP")
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(hfadapt.errors.AttachError, match=r"kernelized\.swiglu in the place of LlamaMLP\.forward"):
        hfadapt.merge(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def shifted(call, embedded, ids):
    return torch.linspace(-0.1, 0.2, embedded.numel(), dtype=embedded.dtype).view_as(embedded)


def noisy(model):
    """The answer under a perturbation, the gradient that a search would climb, and how many calls were perturbed."""
    found = {}

    def perturbation(call, embedded, ids):
        found["delta"] = shifted(call, embedded, ids).requires_grad_()
        return found["delta"]

    with perturbed(word_embeddings(model), perturbation) as added:
        out = answer(model)
    (gradient,) = torch.autograd.grad(out.square().sum(), found["delta"])
    return out, gradient, len(added)


def looked_up(self, ids):
    return F.embedding(ids, self.weight, self.padding_idx)


def kernelize_words(model):
    table = model.get_input_embeddings()
    table.forward = types.MethodType(looked_up, table)
    return model


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["lora", "bottleneck", "prefix"])
def test_noise_on_words_reaches_the_answers_under_kernels(method, when):
    def made(change):
        model = base()
        if change and when == "before":
            kernelize_words(use_kernels(model))
        hfadapt.attach(model, method, "a", seed=1)
        randomize(model)
        if change and when == "after":
            kernelize_words(use_kernels(model))
        return model

    stock, model = made(False), made(True)
    (want, slope, calls), (ours, climbed, seen) = noisy(stock), noisy(model)
    assert calls == seen == 1
    assert not torch.allclose(want, answer(stock))
    torch.testing.assert_close(ours, want, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(climbed, slope, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(answer(model), answer(stock), rtol=1e-8, atol=1e-9)  # and it is gone again


def test_a_patched_class_of_word_embeddings_is_perturbed_too():
    class ScaledEmbedding(nn.Embedding):
        def forward(self, input):
            return super().forward(input) * 1.0

    stock, model = base(), base()
    model.get_input_embeddings().__class__ = ScaledEmbedding
    for one in (stock, model):
        hfadapt.attach(one, "lora", "a", seed=1)
        randomize(one)
    (want, slope, _), (ours, climbed, seen) = noisy(stock), noisy(model)
    assert seen == 1
    torch.testing.assert_close(ours, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(climbed, slope, rtol=1e-9, atol=1e-9)


def test_words_that_something_else_looks_up_are_an_error_and_not_still():
    """A fusion that reads the table's weight calls no embedding: no hook sees a word."""
    model = base()
    hfadapt.attach(model, "lora", "a", seed=1)
    weight = model.get_input_embeddings().weight
    inner = model.forward

    def fused(input_ids=None, **given):
        return inner(inputs_embeds=F.embedding(input_ids, weight), **given)

    model.forward = fused
    with pytest.raises(ArchitectureError, match="looked no words up"), perturbed(word_embeddings(model), shifted):
        answer(model)
