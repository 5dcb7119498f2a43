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


READERS = {
    "pal": hfadapt.PAL(8, num_heads=2),
    "low_rank": hfadapt.LowRank(4),
    "houlsby_norms": hfadapt.Houlsby(size=4, norms={"original_ln_before": True, "residual_before_ln": False}),
    "parallel": hfadapt.ParallelConfig(4, sublayers=("attention", "ffn")),
}


@pytest.mark.parametrize("method", READERS)
@torch.no_grad()
def test_deltas_that_read_the_layers_input_do_not_read_the_table(method):
    """The table has twice eight lines here; with sixteen tokens a row it would even fit."""
    case = V3Case(READERS[method], "deberta-v2")
    conformance.check_mixed_batch_equals_each_alone(case)
    model = case.adapted(("one",))
    ids = torch.randint(5, 90, (1, 16))
    found = hfadapt.attachment(model).arch.stacks[0]
    seen = []
    query = model.get_submodule(found.layer(0).attention.query)
    query.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def reads(module, args, output):
        taps = hfadapt.routing.current().taps
        source = next(t for key, t in taps.items() if key.startswith("encoder.layer.0.attention.self"))
        assert torch.equal(source, seen[0]) and not torch.equal(source, seen[1])

    model.encoder.layer[0].output.register_forward_hook(reads)
    model(input_ids=ids)
    assert len(seen) == 2


@pytest.mark.parametrize("method", [EVERYWHERE, READERS["pal"]], ids=["lora", "pal"])
def test_a_mixed_batch_compiles_whole(method):
    conformance.check_compile(V3Case(method, "deberta-v2"), num_hidden_layers=1)


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
