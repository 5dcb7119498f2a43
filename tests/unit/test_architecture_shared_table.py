"""DeBERTa v3 projects its table of relative positions with the layer's own query and key projections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import hfadapt
from hfadapt.architecture import resolve
from hfadapt.architecture.probe import probe
from hfadapt.testing import conformance
from hfadapt.testing.tiny import tiny_model

V3 = {"share_att_key": True, "norm_rel_ebd": "layer_norm"}
EVERYWHERE = hfadapt.LoRA(3, 6.0, ("query", "key", "value"))


class V3Case(conformance.Case):
    """DeBERTa as its third version is released."""

    def model(self, **changes: Any) -> PreTrainedModel:
        return super().model(**V3, **changes)


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda c: c.__name__)
def test_lora_on_the_shared_projections(check):
    """Mixed batches among them: every row's positions are projected with its own adapter's update."""
    check(V3Case(EVERYWHERE, "deberta-v2"))


@torch.no_grad()
def test_a_row_without_an_adapter_and_a_composition_in_one_batch():
    case = V3Case(EVERYWHERE, "deberta-v2")
    model, inputs = case.adapted(), case.inputs()
    hfadapt.compose(model, "both", hfadapt.Stack("one", "two"))
    ids = ["both", "one", "two"]
    alone = [model(**inputs, task_ids=name)[0][row] for row, name in enumerate(ids)]
    torch.testing.assert_close(model(**inputs, task_ids=ids)[0], torch.stack(alone), rtol=0, atol=1e-9)
    with hfadapt.active(model, hfadapt.Parallel("one", "two")):
        together = model(**inputs)[0]
    each = torch.cat([model(**inputs, task_ids=name)[0] for name in ("one", "two")])
    torch.testing.assert_close(together, each, rtol=0, atol=1e-9)


@torch.no_grad()
def test_detach_leaves_nothing_in_the_attention_modules():
    model = tiny_model("deberta-v2", **V3)
    attention = [layer.attention.self for layer in model.encoder.layer]
    before = [set(module.__dict__) for module in attention]
    hfadapt.attach(model, EVERYWHERE)
    assert all("disentangled_attention_bias" in module.__dict__ for module in attention)
    hfadapt.detach(model)
    assert [set(module.__dict__) for module in attention] == before


def test_the_map_is_what_the_probe_finds():
    model = tiny_model("deberta-v2", **V3)
    assert resolve(model).source == "table"
    assert probe(model) == resolve(model)
