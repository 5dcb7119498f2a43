"""A model in float64 answers, loses and is combined in float64: no step on the way rounds to float32."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

HEADS = {
    "classes": (hfadapt.Classification(3), 2.0),
    "labels": (hfadapt.MultiLabel(3), 1.0),
    "number": (hfadapt.Regression(), 0.25),
    "number within bounds": (hfadapt.Regression(0.0, 5.0), 0.25),
    "classes of tokens": (hfadapt.TokenClassification(3), 1.0),
    "a span": (hfadapt.Span(), 2.0),
}


def digits_of_float32_alone(value):
    return torch.equal(value, value.float().double())


@pytest.mark.parametrize(("head", "label"), HEADS.values(), ids=HEADS)
def test_logits_and_losses_have_the_digits_of_the_model(head, label):
    torch.manual_seed(0)
    tasks = [hfadapt.Task("one", head), hfadapt.Task("two", hfadapt.Classification(2))]
    model = hfadapt.MultiTaskModel.from_base(tiny_model("bert"), tasks, "lora").double().eval()
    randomize(model.base)
    inputs = tiny_inputs("bert")
    size, tokens = inputs["input_ids"].shape
    labels = torch.full((size, tokens if head.per_text is False else 3), label)
    for ids in (torch.zeros(size, dtype=torch.long), torch.arange(size) % 2):
        output = model(**inputs, labels=labels.clamp(max=1.0) if ids.any() else labels, task_ids=ids)
        assert output.logits.dtype == output.loss.dtype == torch.float64
        assert not digits_of_float32_alone(output.logits[0].detach()[: head.num_outputs])
        assert not digits_of_float32_alone(output.loss.detach())


@torch.no_grad()
def test_combined_loras_have_the_digits_of_the_model():
    torch.manual_seed(0)
    model = tiny_model("bert").double().eval()
    hfadapt.attach(model, "lora", names=["a", "b"])
    randomize(model)
    inputs = tiny_inputs("bert")
    hfadapt.combine(model, {"a": 0.3, "b": -0.7}, name="ab", method="cat")
    found = model(**inputs, task_ids="ab").last_hidden_state
    with hfadapt.active(model, hfadapt.Average("a", "b", weights=(0.3, -0.7))):
        torch.testing.assert_close(found, model(**inputs).last_hidden_state, rtol=1e-12, atol=1e-12)


def test_labels_of_a_number_are_not_rounded():
    logits, labels = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[0.1]], dtype=torch.float64)
    assert hfadapt.Regression().loss(logits, labels).item() == 0.1 * 0.1
