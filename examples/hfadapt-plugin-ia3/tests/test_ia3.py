"""IA3 passes hfadapt's conformance suite, counts what the paper counts, and trains through the command line's door."""

from __future__ import annotations

import pytest
import torch
from hfadapt_ia3 import IA3Config
from transformers import BertConfig, BertForSequenceClassification, BertModel

import hfadapt
from hfadapt import plugins
from hfadapt.testing import conformance


def test_the_entry_point_registers_the_method() -> None:
    assert "ia3" in plugins.methods()
    assert "ia3" in plugins.methods().origin("ia3")


FUSED = ("gpt2", "modernbert")
CASES = [case for case in conformance.cases([IA3Config()]) if case.model_type not in FUSED]
CASES += [case for case in conformance.cases([IA3Config(attention=False)]) if case.model_type in FUSED]


@pytest.mark.parametrize("case", CASES, ids=[f"{case}-{i}" for i, case in enumerate(CASES)])
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_conformance(case: conformance.Case, check) -> None:
    check(case)


@pytest.mark.parametrize("case", conformance.cases([IA3Config()]), ids=str)
def test_fused_keys_and_values_are_refused_with_what_would_work(case: conformance.Case) -> None:
    reason = case.refused()
    assert (reason is not None) == (case.model_type in FUSED)
    assert reason is None or "attention=False" in reason


def test_parameters_are_keys_values_and_hidden_units() -> None:
    with torch.device("meta"):
        model = BertModel(BertConfig())
    handle = hfadapt.attach(model, IA3Config(), verify=False)
    assert handle.num_parameters() == 12 * (768 + 768 + 3072)


def test_training_moves_only_scales_and_head_and_lowers_the_loss() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=2
    )
    model = BertForSequenceClassification(config)
    hfadapt.attach(model, "ia3")
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    inputs = torch.randint(3, 50, (16, 8))
    labels = (inputs[:, 1] > 25).long()
    losses = []
    for _ in range(60):
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(frozen[name], p) for name, p in model.named_parameters() if name in frozen)
