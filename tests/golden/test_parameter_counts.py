"""Parameter counts on BERT-base without weights equal the papers' tables and the published code's."""

from __future__ import annotations

import json

import pytest
import torch
from golden_pals import DATA, Golden, method_of
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

import hfadapt

BASE = 109_482_240  # BERT-base with its pooler
CODE = json.loads((DATA / "param_counts_bert_base_8tasks.json").read_text())
TINY = json.loads((DATA / "index.json").read_text())

VARIANTS = {
    "pals_204": hfadapt.PAL(204, num_heads=6, activation="gelu"),
    "low_rank_100": hfadapt.LowRank(100, activation="gelu"),
    "pals_276_top": hfadapt.PAL(276, layers="final_half"),
    "pals_276_bottom": hfadapt.PAL(276, layers="first_half"),
    "top_proj_attn_204": hfadapt.TopAttention(204, num_layers=6),
    "top_bert_layer": hfadapt.TopLayer(),
    "houlsby_50": (
        hfadapt.Bottleneck(50, on="attention", non_linearity="gelu"),
        hfadapt.Bottleneck(50, on="ffn", is_parallel=True, non_linearity="gelu"),
    ),
    "houlsby_plus_pals_156_50": (
        hfadapt.Bottleneck(50, on="attention", non_linearity="gelu"),
        hfadapt.PAL(156, num_heads=6, position="ffn", activation="gelu"),
    ),
    "lhuc": hfadapt.LHUC(),
    "pals_60": hfadapt.PAL(60),
    "low_rank_10": hfadapt.LowRank(10),
}


def count(method, names: int = 1, cls=BertModel, config=None) -> int:
    with torch.device("meta"):
        model = cls(config or BertConfig())
    assert config is not None or sum(p.numel() for p in model.parameters()) == BASE
    return hfadapt.attach(model, method, names=[f"task{i}" for i in range(names)]).num_parameters()


@pytest.mark.parametrize("variant", VARIANTS)
def test_extra_parameters_of_eight_tasks_equal_the_published_code(variant: str) -> None:
    extra = count(VARIANTS[variant], names=8)
    assert extra == CODE[variant]["extra_total_8_tasks"]
    assert (BASE + extra) / BASE == pytest.approx(CODE[variant]["ratio"], rel=1e-12)


def test_every_variant_of_the_published_code_is_covered() -> None:
    assert set(VARIANTS) == set(CODE) - {"shared"}


@pytest.mark.parametrize(
    ("method", "ratio"),
    [
        (hfadapt.PAL(204), "1.13"),
        (hfadapt.PAL(204, g="ffn"), "1.13"),
        (hfadapt.LowRank(100), "1.14"),  # 1.13x in the paper, which writes no biases; see below
        (hfadapt.LowRank(100, bias=False), "1.13"),
        (hfadapt.PAL(84, share=False), "1.13"),
        (hfadapt.PAL(276, layers="final_half"), "1.13"),
        (hfadapt.TopAttention(204), "1.10"),
        (hfadapt.TopFFN(204), "1.10"),
        (hfadapt.TopFFN(204, hidden_layers=2), "1.10"),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{v.method}-{v.size}",
)
def test_ratio_to_the_base_equals_the_papers_table(method, ratio: str) -> None:
    assert f"{1 + count(method, names=8) / BASE:.2f}" == ratio


def test_formulas_without_biases() -> None:
    """Table 1 of the PALs paper: PALs T(2 d_m d_s + 12 * 3 d_s^2), low rank T(12 * 2 d_m d_s)."""
    assert count(hfadapt.PAL(204, bias=False)) == 2 * 768 * 204 + 12 * 3 * 204**2
    assert count(hfadapt.PAL(276, bias=False, layers="final_half")) == 2 * 768 * 276 + 6 * 3 * 276**2
    assert count(hfadapt.PAL(84, bias=False, share=False)) == 12 * (2 * 768 * 84 + 3 * 84**2) == 1_802_304
    assert count(hfadapt.LowRank(100, bias=False)) == 12 * 2 * 768 * 100
    # 306 = 3/2 of 204 makes the FFN as large as the attention
    assert count(hfadapt.PAL(204, g="ffn", bias=False)) == count(hfadapt.PAL(204, bias=False))
    assert hfadapt.TopFFN(204).hidden == 408 and hfadapt.TopFFN(204, hidden_layers=2).hidden == 252


def test_what_the_paper_describes_without_a_row() -> None:
    """A square matrix or a pooler a task (d_m^2), serial adapters with norms of their own, LHUC beside TS."""
    square, norms = 768**2 + 768, 12 * 2 * 768
    assert count(hfadapt.TopLinear()) == count(hfadapt.Pooler()) == square
    assert count(hfadapt.PAL(204, position="serial")) == count(hfadapt.PAL(204)) + norms
    assert count(hfadapt.LowRank(100, position="serial")) == count(hfadapt.LowRank(100)) + norms
    assert count((hfadapt.PAL(204), hfadapt.LHUC())) == count(hfadapt.PAL(204)) + 12 * 768
    # table 1: 2 d_m d_s + 6 * 4 d_s^2, and the biases and norms
    assert count(hfadapt.TopAttention(204)) == 2 * 768 * 204 + 6 * 4 * 204**2 + (204 + 768) + 6 * (4 + 2) * 204
    plain = hfadapt.TopFFN(204, norm=False)
    assert count(plain) == 2 * 768 * 204 + 6 * 2 * 204 * 408 + (204 + 768) + 6 * (408 + 204)


@pytest.mark.parametrize(
    ("rate", "share", "weights"), [(16, False, 884_736), (None, True, 884_736), (4, True, 294_912), (16, True, 73_728)]
)
def test_pfeiffer_and_cross_layer_sharing_equal_the_adapterdrop_table(rate, share: bool, weights: int) -> None:
    """RoBERTa-base: 884k at rate 16, and with one adapter for all layers 884k, 295k and 74k (weights alone)."""
    size = 576 if rate is None else None  # the table's rate 1.33
    config = hfadapt.Pfeiffer(size=size, reduction_factor=rate or 16, share=share)
    width = config.size_for(768)
    biases = (width + 768) * (1 if share else 12)
    found = count(config, cls=RobertaModel, config=RobertaConfig())
    assert found == weights + biases


@pytest.mark.parametrize("name", [n for n in TINY if n != "shared"])
def test_tiny_models_of_every_golden_including_those_not_here(name: str) -> None:
    """Also a check of the map from the reference's options to our configs."""
    entry = TINY[name]
    known = set(BertConfig().to_dict())
    config = BertConfig(**{k: v for k, v in entry["config"].items() if k in known})
    golden = Golden(entry["config"], {}, entry["placement"])
    assert count(method_of(golden), cls=BertModel, config=config) == entry["extra_params_per_task"]
