"""Inputs made up for a model of which only the config and the signature are known."""

from __future__ import annotations

import pytest
import torch

from hfadapt.testing.every_type import tiny_of_type
from hfadapt.testing.type_checks import stock_inputs
from tests.unit.releases import older


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("qwen3_vl_vision", {"hidden_states", "grid_thw"}),
        ("siglip2_vision_model", {"pixel_values", "spatial_shapes", "pixel_attention_mask"}),
        ("bros", {"input_ids", "bbox"}),
        ("lxmert", {"input_ids", "visual_feats", "visual_pos"}),
        ("patchtst", {"past_values"}),
        ("blip_2_qformer", {"query_embeds", "encoder_hidden_states"}),
        ("parakeet_ctc", {"input_features"}),
        ("dia", {"input_ids", "decoder_input_ids"}),
    ],
)
def test_what_goes_with_the_main_input_is_made(model_type: str, names: set[str]) -> None:
    if model_type == "qwen3_vl_vision" and older("transformers", "5.15"):
        pytest.skip("a part of a larger model there, and no model of its own")
    model = tiny_of_type(model_type)
    inputs = stock_inputs(model)
    assert names <= inputs.keys()
    with torch.no_grad():
        model(**inputs)


def test_every_kind_of_layer_is_in_a_tiny_model() -> None:
    config = tiny_of_type("jamba").config
    recurrent = "mamba" if older("transformers", "5.14") else "linear_attention"
    assert set(config.layer_types) == {recurrent, "full_attention"}
    assert set(tiny_of_type("qwen3_next").config.layer_types) == {"linear_attention", "full_attention"}
    experts = tiny_of_type("deepseek_v3").config
    assert experts.first_k_dense_replace == 1 < experts.num_hidden_layers
