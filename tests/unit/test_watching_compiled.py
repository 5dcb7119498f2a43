"""What happens to a model after it was compiled is noticed too, and followed where it can be."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model


def compiled(method, model_type="bert", head=None, **settings):
    """A model that was attached to, compiled and called. Of one layer: a trace takes its time for each."""
    model = tiny_model(model_type, head, num_hidden_layers=1, **settings)
    hfadapt.attach(model, method, names=("one", "two"), verify=False)
    randomize(model)
    inputs = {**tiny_inputs(model_type, head), "task_ids": torch.tensor([0, 1, 0])}
    with torch.no_grad():
        model(**inputs)  # which shows of modules chosen by name that their rows are the batch's
    run = torch.no_grad()(torch.compile(model, backend="eager", fullgraph=True))
    run(**inputs)
    return model, run, inputs


def test_rows_that_no_call_has_shown_are_asked_for_before_a_trace():
    model = tiny_model("bert")
    hfadapt.attach(model, hfadapt.LoRA(target_modules="dense"), names=("one", "two"), verify=False)
    run = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="one call of the model itself"):
        run(**tiny_inputs("bert"), task_ids=torch.tensor([0, 1, 0]))


def test_a_compiled_model_follows_another_attention():
    model, run, inputs = compiled(hfadapt.PrefixConfig(3, mlp_size=8))
    want = run(**inputs)[0]
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        torch.testing.assert_close(run(**inputs)[0], want, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs)[0], want, rtol=1e-5, atol=1e-5)


def grown_head(model):
    model.resize_token_embeddings(120)


def another_leaf(model):
    model.encoder.layer[0].attention.self.query = torch.nn.Linear(32, 32)


def another_forward(model):
    layer = model.encoder.layer[0].intermediate
    layer.forward = lambda states: torch.relu(torch.nn.functional.linear(states, layer.dense.weight, layer.dense.bias))


@pytest.mark.parametrize(
    ("change", "said", "given"),
    [
        (
            grown_head,
            "lm_head .a new Linear stands there",
            (hfadapt.LoRA(target_modules="lm_head"), "llama", "causal-lm", False),
        ),
        (another_leaf, "attention.self.query .a new Linear stands there", (hfadapt.LoRA(r=2), "bert", None, None)),
        (
            another_forward,
            "were changed after the model was compiled",
            (hfadapt.LoRA(target_modules="dense"), "bert", None, None),
        ),
    ],
    ids=["head", "leaf", "forward"],
)
def test_a_compiled_model_notices_what_its_adapters_lost(change, said, given):
    method, model_type, head, tied = given
    model, run, inputs = compiled(method, model_type, head, **({} if tied is None else {"tie_word_embeddings": tied}))
    change(model)
    with pytest.raises(Exception, match=said):
        run(**inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_compiled_model_that_was_cast_keeps_its_adapters(dtype):
    model, run, inputs = compiled("lora")
    model.to(dtype)
    with torch.no_grad():
        assert torch.equal(run(**inputs)[0], model(**inputs)[0])
