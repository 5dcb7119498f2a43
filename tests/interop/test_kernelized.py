"""Adapters beside ``use_kernels=True``: the numbers of the stock model, whichever came first, in both modes."""

from __future__ import annotations

import copy

import pytest
import torch

import hfadapt
from hfadapt.errors import AttachError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.every_type import tiny_of_type
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.interop.kernelized import RAN, use_kernels

METHODS = {
    "lora": ("lora", {}),
    "lora_by_name": (hfadapt.LoRA(r=4, target_modules=["o_proj", "down_proj"]), {}),
    "bottleneck": ("bottleneck", {}),
    "parallel": ("parallel", {}),
    "prefix": ("prefix", {}),
    "pal": (hfadapt.PAL(size=12, dropout=0.0), {}),
    "lhuc": ("lhuc", {}),
    "mam": ("mam", {}),
    "norms": ((), {"modules_to_save": ["norm", "input_layernorm"]}),
}
INPUTS = tiny_inputs("llama", batch=3)


def base():
    torch.manual_seed(0)
    return tiny_model("llama").double()


def adapted(model, kind):
    method, more = METHODS[kind]
    for name in ("a", "b"):
        hfadapt.attach(model, method, name, seed=1, **more)
    randomize(model)
    return model


def answer(model, rows=("a", None, "b")):
    return model(**INPUTS, task_ids=list(rows))[0]


@pytest.mark.parametrize("when", ["before", "after", "after a call"])
@pytest.mark.parametrize("kind", METHODS)
def test_mixed_rows_are_those_of_the_stock_model(kind, when):
    stock = adapted(base(), kind)
    model = use_kernels(base()) if when == "before" else base()
    forwards = {path: m.__dict__.get("forward") for path, m in model.named_modules()}
    adapted(model, kind)
    if when == "after a call":
        answer(model)
    if when != "before":
        use_kernels(model)
    for mode in (True, False):
        model.train(mode), stock.train(mode)
        RAN.clear()
        ours, theirs = answer(model), answer(stock)
        assert set(RAN) >= {"training" if mode else "inference"}
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    grads = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    assert grads and all("hfadapt" in name for name in grads)
    for name, parameter in model.named_parameters():
        if name in grads:
            torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-8, atol=1e-9)
    assert hfadapt.verify(model) == hfadapt.verify(stock)
    torch.testing.assert_close(answer(copy.deepcopy(model)), ours, rtol=0, atol=0)
    hfadapt.detach(model)
    if when == "before":
        model.train(base().training)
        assert {path: m.__dict__.get("forward") for path, m in model.named_modules()} == forwards


def test_a_proof_leaves_the_kernels_of_the_mode_that_a_model_is_in():
    """``eval()`` would put kernels for inference there, and some of those have no backward."""
    model = use_kernels(base().train())
    adapted(model, "lora")
    hfadapt.verify(model)
    RAN.clear()
    answer(model)
    assert set(RAN) == {"training"}


def test_kernels_that_do_not_load_change_nothing_and_prove_nothing_anew(monkeypatch):
    model = adapted(base().eval(), "norms")
    want = answer(model)
    proofs = []
    monkeypatch.setattr(model.__dict__["_hfadapt"], "prove", lambda *given: proofs.append(given))
    use_kernels(model, "LlamaMLP", load=False)
    assert torch.equal(answer(model), want)
    assert len(proofs) == 1  # the copies of norms were put back to work
    use_kernels(model, "LlamaMLP", load=False)
    without = adapted(use_kernels(base().eval(), "LlamaMLP", load=False), "lora")
    watch = without.__dict__["_hfadapt"].watch
    use_kernels(without, "LlamaMLP", load=False)
    assert watch.holds()
    hfadapt.attach(without, hfadapt.LoRA(r=2, target_modules=["gate_proj"]), "c")  # the MLP runs its own forward


def test_a_kernel_for_a_whole_mlp_is_named():
    with pytest.raises(AttachError, match=r"kernelized\.swiglu in the place of LlamaMLP\.forward.*use_kernels"):
        hfadapt.attach(use_kernels(base(), "LlamaMLP"), hfadapt.LoRA(r=4, target_modules=["gate_proj"]))
    model = adapted(base().eval(), "lora_by_name")
    answer(model)
    use_kernels(model, "LlamaMLP")
    with pytest.raises(AttachError, match=r"kernelized\.swiglu in the place of LlamaMLP\.forward"):
        answer(model)
    hfadapt.detach(model)
    assert hfadapt.attach(model, "lora").names  # q and v alone
    answer(model, ("default",) * 3)


def test_a_class_that_was_swapped_is_seen_by_the_next_call():
    model = adapted(base().eval(), "lora_by_name")
    answer(model)
    mlp = model.layers[0].mlp
    kind = type(mlp)
    mlp.__class__ = type("Sharded", (kind,), {})  # as FSDP does, which keeps the forward
    answer(model)
    mlp.__class__ = type("Fast", (kind,), {"forward": lambda self, x: kind.forward(self, x) * 1.0})
    answer(model)
    mlp.__class__ = type(
        "Fused",
        (kind,),
        {"forward": lambda self, x: torch.nn.functional.linear(x, self.gate_proj.weight) @ self.down_proj.weight.T},
    )
    with pytest.raises(AttachError, match="down_proj"):
        answer(model)


EXPERTS = hfadapt.LoRA(2, 4, ("experts.gate_up_proj",), init="normal")


def test_updates_of_experts_parameters_beside_a_kernel_for_the_experts():
    torch.manual_seed(0)
    fresh = tiny_of_type("mixtral").eval()
    ids = {"input_ids": torch.randint(4, 40, (2, 6))}
    stock = copy.deepcopy(fresh)
    hfadapt.attach(stock, EXPERTS, seed=1, train_head=False)

    def own(model):
        for module in model.modules():
            if type(module).__name__ == "MixtralExperts":
                module.forward = type(module).forward.__get__(module)

    def other(model):
        for module in model.modules():
            if type(module).__name__ == "MixtralExperts":
                module.forward = (lambda self, *given: type(self).forward(self, *given)).__get__(module)

    before = copy.deepcopy(fresh)
    own(before)
    handle = hfadapt.attach(before, EXPERTS, seed=1, train_head=False)
    assert torch.equal(before(**ids)[0], stock(**ids)[0])
    own(before)
    assert torch.equal(before(**ids)[0], stock(**ids)[0])
    other(before)
    with pytest.raises(AttachError, match="in the place of MixtralExperts.forward"):
        before(**ids)
    handle.detach()
    other(fresh)
    with pytest.raises(AttachError, match="something else runs in the place of a module's forward"):
        hfadapt.attach(fresh, EXPERTS)
