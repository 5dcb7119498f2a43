"""Families have settings that move parts of their layers: adapters act there as everywhere."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.testing import conformance
from hfadapt.testing.tiny import tiny_inputs, tiny_model

V3 = {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0}
VARIANTS = {
    "albert-groups": ("albert", {"num_hidden_layers": 4, "num_hidden_groups": 2}),
    "albert-inner-groups": ("albert", {"num_hidden_layers": 2, "inner_group_num": 2}),
    "bert-decoder-with-cross-attention": ("bert", {"is_decoder": True, "add_cross_attention": True}),
    "deberta-v2-convolution": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-v3": ("deberta-v2", V3),
    "gpt2-with-cross-attention": ("gpt2", {"add_cross_attention": True}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "t5-v1.1": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
}
METHODS = {
    "within": (
        hfadapt.PAL(8, num_heads=2, init="normal"),
        hfadapt.Houlsby(size=4),
        hfadapt.LoRA(3, target_modules="all-linear"),
    ),
    "top": hfadapt.TopLayer(),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_rows_copies_and_dropped_layers_are_as_they_must_be(variant: str, method: str) -> None:
    model_type, changes = VARIANTS[variant]
    model, inputs = tiny_model(model_type, **changes).double(), tiny_inputs(model_type, padding="right")
    if changes.get("add_cross_attention"):
        inputs["encoder_hidden_states"] = torch.randn(3, 5, 32, generator=torch.manual_seed(0)).double()
    base = conformance.output(model, inputs)
    hfadapt.attach(model, METHODS[method], names=["one", "two"], seed=0)
    conformance.randomize(model)
    alone = {name: conformance.output(model, inputs, task_ids=name) for name in ("one", "two")}
    assert (alone["one"] - base).abs().max() > 1e-3 < (alone["one"] - alone["two"]).abs().max()
    close = {"rtol": 0, "atol": 1e-5 if model_type in ("t5", "qwen2") else 1e-9}  # norms in float32
    mixed = conformance.output(model, inputs, task_ids=["two", "one", "two"])
    torch.testing.assert_close(mixed, torch.stack([alone[n][i] for i, n in enumerate(("two", "one", "two"))]), **close)
    with hfadapt.active(model, hfadapt.Parallel("one", "two")):
        torch.testing.assert_close(conformance.output(model, inputs), torch.cat(list(alone.values())), **close)
    if method == "within":
        hfadapt.set_adapter_drop(model, {s.path: s.num_layers for s in hfadapt.attachment(model).arch.stacks})
        assert torch.equal(conformance.output(model, inputs, task_ids="one"), base)
