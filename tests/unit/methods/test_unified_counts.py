"""Parameter counts of the unified view's tables, on models without memory (He et al. 2022, tables 3 to 6 and 11)."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
)

import hfadapt

D, LAYERS = 1024, 12
ATTENTIONS, FFNS = 3 * LAYERS, 2 * LAYERS


def bart_large():
    with torch.device("meta"):
        return BartModel(BartConfig())


def count(model, method):
    return hfadapt.attach(model, method).num_parameters()


def share(method):
    model = bart_large()
    base = sum(p.numel() for p in model.parameters())
    return count(model, method) / base


@pytest.mark.parametrize(
    ("method", "formula", "percent"),
    [
        (hfadapt.PrefixConfig(200, "flat"), 2 * 200 * D * ATTENTIONS, 3.6),
        (hfadapt.PrefixConfig(200, "flat", form="relu"), 2 * 200 * D * ATTENTIONS, 3.6),
        (hfadapt.ParallelConfig(200, 1.0, "attention", bias=False), 2 * 200 * D * ATTENTIONS, 3.6),
        (hfadapt.ParallelConfig(200, 1.0, "ffn", bias=False), 2 * 200 * D * FFNS, 2.4),
        (hfadapt.ParallelConfig(512, 4.0, "ffn", bias=False), 2 * 512 * D * FFNS, 6.2),
        (hfadapt.ParallelConfig(1024, 1.0, "ffn", bias=False), 2 * 1024 * D * FFNS, 12.4),
        (hfadapt.LoRA(200, target_modules=("query", "value")), 4 * 200 * D * ATTENTIONS, 7.3),
        (hfadapt.LoRA(102, target_modules=("ffn_in", "ffn_out")), 10 * 102 * D * FFNS, 6.2),
        (
            hfadapt.MAM({"reparametrization": "flat"}, {"bias": False}),
            2 * 30 * D * ATTENTIONS + 2 * 512 * D * FFNS,
            6.74,
        ),
    ],
    ids=lambda v: getattr(v, "method", None) if not isinstance(v, tuple) else "mam",
)
def test_bart_large(method, formula, percent):
    model = bart_large()
    base = sum(p.numel() for p in model.parameters())
    found = count(model, method)
    assert found == formula
    assert round(100 * found / base, 2 if percent == 6.74 else 1) == percent


@pytest.mark.parametrize(
    ("method", "weights", "biases", "percent"),
    [
        (hfadapt.Bottleneck(200, on=("attention", "cross")), 2 * 200 * D * ATTENTIONS, (200 + D) * ATTENTIONS, 3.6),
        (hfadapt.Bottleneck(200), 2 * 200 * D * FFNS, (200 + D) * FFNS, 2.4),
        # 7.2 in the table, which rounds down.
        (hfadapt.Pfeiffer(size=600), 2 * 600 * D * FFNS, (600 + D) * FFNS, 7.3),
        (hfadapt.PrefixConfig(30, "flat"), 2 * 30 * D * ATTENTIONS, 0, 0.5),
        (
            (hfadapt.ParallelConfig(30, 1.0, "attention"), hfadapt.ParallelConfig(512, 4.0)),
            2 * 30 * D * ATTENTIONS + 2 * 512 * D * FFNS,
            (30 + D) * ATTENTIONS + (512 + D) * FFNS,
            6.8,  # 6.7 without the biases, which the formulas of table 11 leave out
        ),
        (
            (hfadapt.PrefixConfig(30, "flat"), hfadapt.LoRA(102, target_modules=("ffn_in", "ffn_out"))),
            2 * 30 * D * ATTENTIONS + 10 * 102 * D * FFNS,
            0,
            6.7,
        ),
    ],
    ids=["sa-attn-200", "sa-ffn-200", "pfeiffer-600", "prefix-30", "pa-attn-30+pa-ffn-512", "prefix-30+lora-102"],
)
def test_bart_large_with_biases(method, weights, biases, percent):
    model = bart_large()
    base = sum(p.numel() for p in model.parameters())
    found = count(model, method)
    assert found == weights + biases
    assert round(100 * found / base, 1) == percent


def test_glue_settings_of_roberta_base_are_half_a_percent():
    """MAM of the GLUE runs: l = 16, r = 16."""
    with torch.device("meta"):
        model = RobertaModel(RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1))
    base = sum(p.numel() for p in model.parameters())
    mam = hfadapt.MAM({"num_virtual_tokens": 16, "reparametrization": "flat"}, {"r": 16, "scale": 2.0, "bias": False})
    found = count(model, mam)
    assert found == 2 * 16 * 768 * 12 + 2 * 16 * 768 * 12
    assert round(100 * found / base, 1) == 0.5


def test_reparametrised_prefix_trains_much_and_keeps_little():
    model = bart_large()
    handle = hfadapt.attach(model, hfadapt.PrefixConfig(30))
    network = 30 * D + D * 800 + 800 + 801 * LAYERS * 2 * D
    assert handle.num_parameters() == 3 * network
    assert round(handle.num_parameters() / 1e6, 1) == 61.6
    assert round(2 * 30 * D * ATTENTIONS / 1e6, 1) == 2.2


def test_scale_norm_and_biases_are_counted():
    with torch.device("meta"):
        model = BertModel(BertConfig(), add_pooling_layer=False)
    found = count(model, hfadapt.ParallelConfig(16, "learned", norm_before=True))
    assert found == 12 * (2 * 16 * 768 + 16 + 768 + 1 + 2 * 768)


def test_free_heads_have_projections_of_their_own():
    with torch.device("meta"):
        model = BertModel(BertConfig(), add_pooling_layer=False)
    found = count(model, hfadapt.ParallelConfig(16, 1.0, "attention", by_head=True))
    assert found == 12 * (12 * 16 * 768 + 16 * 768 + 12 * 16 + 768)


def test_lora_on_slices_of_a_fused_projection():
    with torch.device("meta"):
        model = GPT2Model(GPT2Config())
    assert count(model, hfadapt.LoRA(4)) == 12 * 2 * 4 * (768 + 768)
    hfadapt.detach(model)
    assert count(model, hfadapt.LoRA(4, target_modules=("c_attn",))) == 12 * 4 * (768 + 3 * 768)


ROWS = {
    "table 4: no gating 30": (hfadapt.PrefixConfig(30, "flat", form="no_gating"), 2 * 30 * D * ATTENTIONS, 0),
    "table 4: multi-head parallel 30": (hfadapt.PrefixConfig(30, "flat", form="relu"), 2 * 30 * D * ATTENTIONS, 0),
    "table 4: parallel attention 30": (hfadapt.ParallelConfig(30, 1.0, "attention"), 2 * 30 * D, ATTENTIONS),
    "table 4: parallel ffn 30": (hfadapt.ParallelConfig(30, 1.0), 2 * 30 * D, FFNS),
    "table 5: parallel ffn 512, trained s": (hfadapt.ParallelConfig(512, "learned"), 2 * 512 * D + 1, FFNS),
    "table 12: prefix 512": (hfadapt.PrefixConfig(512, "flat"), 2 * 512 * D * ATTENTIONS, 0),
    "table 12: serial attention 512": (hfadapt.Bottleneck(512, on=("attention", "cross")), 2 * 512 * D, ATTENTIONS),
    "table 12: parallel attention 512": (hfadapt.ParallelConfig(512, 1.0, "attention"), 2 * 512 * D, ATTENTIONS),
    "table 12: serial ffn 512": (hfadapt.Bottleneck(512), 2 * 512 * D, FFNS),
    "table 12: serial ffn 1024": (hfadapt.Bottleneck(1024), 2 * 1024 * D, FFNS),
}


def test_the_other_rows_of_bart_large():
    """With the biases of both projections, which the formulas of table 11 leave out."""
    model = bart_large()
    for row, (method, weights, places) in ROWS.items():
        handle = hfadapt.attach(model, method)
        size = getattr(method, "r", None) or getattr(method, "size", None) or 0
        assert handle.num_parameters() == (weights + size + D) * places + (0 if places else weights), row
        handle.detach()


def test_the_rows_of_roberta_base_have_one_budget():
    """Table 2: prefix, LoRA, adapter and MAM at .5 % each."""
    with torch.device("meta"):
        model = RobertaModel(RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1))
    base = sum(p.numel() for p in model.parameters())
    found = set()
    for method in (
        hfadapt.PrefixConfig(32, "flat"),
        hfadapt.LoRA(16),
        hfadapt.ParallelConfig(32, bias=False),
        hfadapt.MAM({"num_virtual_tokens": 16, "reparametrization": "flat"}, {"r": 16, "bias": False}),
    ):
        handle = hfadapt.attach(model, method)
        found.add(handle.num_parameters())
        handle.detach()
    assert found == {589_824} and round(100 * 589_824 / base, 1) == 0.5
