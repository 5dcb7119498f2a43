"""A loss that is fused with the head stands in place of ``forward``, calls the base and reads the head's weights."""

import types

import pytest
import torch
from torch.nn import functional

import hfadapt
from hfadapt.errors import AttachError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from tests.unit.releases import checkpoint_activations

IDS = torch.arange(5, 17).view(2, 6)
NAMES = ["one", "two"]


def fuse(model):
    """Replace the model's forward as TRL and Liger do."""
    stock = model.forward

    def forward(self, *args, labels=None, fused=False, **kwargs):
        if not fused:
            return stock(*args, labels=labels, **kwargs)
        states = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        logits = states @ self.get_output_embeddings().weight.T
        return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    model.forward = types.MethodType(forward, model)


def adapted(method, kind="llama", before=False, **options):
    """A model with two adapters; ``before``: its forward is replaced before they come."""
    model = tiny_model(kind, "causal-lm", seed=0)
    if before:
        fuse(model)
    hfadapt.attach(model, method, names=NAMES, seed=0, **options)
    randomize(model)
    if not before:
        fuse(model)
    return model.train()


def gradients(model, **call):
    model.zero_grad()
    torch.manual_seed(0)
    loss = model(IDS, labels=IDS, **call)
    loss = loss if isinstance(loss, torch.Tensor) else loss.loss
    loss.backward()
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("method", ["lora", "mam", "pal", "unipelt"])
def test_what_a_fused_loss_trains_is_what_the_models_own_does(method, checkpointing, before):
    model = adapted(method, before=before)
    if checkpointing:
        checkpoint_activations(model)
    for call in ({"task_ids": NAMES}, {"task_ids": ["two", None]}):
        loss, wanted = gradients(model, **call)
        fused, found = gradients(model, fused=True, **call)
        torch.testing.assert_close(fused, loss)
        assert wanted and found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, msg=name)


AT_THE_HEAD = [
    (hfadapt.LoRA(2, target_modules=("q_proj", "lm_head")), {}),
    (hfadapt.LoRA(2, target_modules=("lm_head",)), {}),
    ("lora", {"modules_to_save": ["lm_head"]}),
    ("invertible", {}),
]


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize(("method", "options"), AT_THE_HEAD, ids=["lora", "lora alone", "copy", "invertible"])
def test_adapters_at_the_head_refuse_it(method, options, before):
    model = adapted(method, before=before, **options)
    with pytest.raises(AttachError, match=r"does not run every module.*lm_head"):
        model(IDS, labels=IDS, fused=True, task_ids="one")
    with hfadapt.active(model, "two"), pytest.raises(AttachError, match="does not run every module"):
        model(IDS, labels=IDS, fused=True)
    model(IDS, labels=IDS, task_ids=NAMES)  # the whole model
    model(IDS, labels=IDS, fused=True, task_ids="__base__")
    hfadapt.attach(model, "lora", "three")
    model(IDS, labels=IDS, fused=True, task_ids="three")  # has no place there


def test_a_base_called_by_hand_needs_no_head():
    model = tiny_model("llama", "causal-lm", seed=0)
    hfadapt.attach(model, "lora", modules_to_save=["lm_head"])
    assert model.base_model(IDS).last_hidden_state.requires_grad
