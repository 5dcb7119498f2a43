"""Prefixes of AdapterHub's compute on T5, which counts distances, and on DistilBERT what they compute there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DistilBertModel, T5ForConditionalGeneration

import hfadapt
from hfadapt.errors import AttachError, CheckpointError, ConfigError

FAMILIES = Path(__file__).resolve().parents[1] / "golden" / "data" / "adapterhub" / "families"
CLASSES = {"t5": T5ForConditionalGeneration, "distilbert": DistilBertModel}


def base(family, attention="eager"):
    return CLASSES[family].from_pretrained(FAMILIES / family / "base", attn_implementation=attention).eval()


def load(family, case, model):
    return hfadapt.load(FAMILIES / family / case, model, weights="bin")


@torch.no_grad()
def output(model, rows=None, **more):
    inputs = load_file(str(FAMILIES / model.config.model_type / "inputs.safetensors"))
    if rows is not None:
        inputs = {key: tensor[rows] for key, tensor in inputs.items()}
    return model(**inputs, **more)[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("family", "case"), [("t5", "prefix"), ("t5", "prefix_decoder"), ("distilbert", "prefix")], ids="-".join
)
def test_a_prefix_gives_the_librarys_outputs(tmp_path, family, case, attention):
    mine = load(family, case, base(family, attention))
    expected = load_file(str(FAMILIES / family / case / "expected.safetensors"))["out"]
    torch.testing.assert_close(output(mine), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output(base(family)), expected, atol=0.1)
    hfadapt.save(mine, tmp_path)
    assert torch.equal(output(hfadapt.load(tmp_path, base(family, attention))), output(mine))


@pytest.mark.parametrize("family", CLASSES)
def test_a_row_does_not_depend_on_its_neighbours(family):
    mine = load(family, "prefix", base(family, "sdpa"))
    for row in range(3):
        torch.testing.assert_close(output(mine)[row : row + 1], output(mine, [row]), rtol=1e-5, atol=1e-6)


def test_rows_whose_keys_move_and_others_share_a_batch():
    mine = load("t5", "prefix", base("t5"))
    hfadapt.attach(mine, hfadapt.PrefixConfig(2, "flat", init_std=1.0), "apart")
    hfadapt.attach(
        mine, hfadapt.PrefixConfig(4, "flat", init_std=1.0, tokens="keys_behind", gate="mean_padded"), "long"
    )
    hfadapt.attach(mine, hfadapt.PrefixConfig(4, "flat", attention="self", init_std=1.0, tokens="behind"), "behind")
    for rows in (["x", "long", "apart"], [None, "x", "behind"]):
        mixed = output(mine, task_ids=rows)
        for number, name in enumerate(rows):
            alone = output(mine, task_ids=[name] * 3)[number]
            torch.testing.assert_close(mixed[number], alone, rtol=1e-5, atol=1e-6)
    tokens = load_file(str(FAMILIES / "t5" / "inputs.safetensors"))["input_ids"]
    for name in ("x", "behind"):
        with hfadapt.active(mine, name):
            made = [
                mine.generate(tokens, max_new_tokens=5, do_sample=False, use_cache=cache) for cache in (True, False)
            ]
        assert torch.equal(*made)


def test_layers_without_a_prefix_are_refused_where_the_library_forgets_distances():
    mine = base("t5")
    before = output(mine)
    with pytest.raises(CheckpointError, match="leave"):
        load("t5", "prefix_leave_out", mine)
    assert torch.equal(output(mine), before)


def test_where_no_distances_count_no_keys_move(tmp_path):
    with pytest.raises(AttachError, match="distances"):
        hfadapt.attach(base("distilbert"), hfadapt.PrefixConfig(2, tokens="keys_behind"))
    with pytest.raises(ConfigError, match="tokens"):
        hfadapt.PrefixConfig(2, tokens="shifted")
    mine = base("distilbert")
    hfadapt.attach(mine, hfadapt.PrefixConfig(2, tokens="behind"))
    with pytest.raises(AttachError, match="behind"):
        hfadapt.export(mine, tmp_path / "out", format="adapterhub")
