"""The tiny bases of the unified view's goldens: stock models of their sizes, with the fork's weights or others."""

from __future__ import annotations

from pathlib import Path

from golden_files import DATA as ALL_DATA
from golden_files import starting_with, tensors_of
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

DATA = ALL_DATA / "unify"


def base_model(arch: str, implementation: str = "eager", folder: Path = DATA) -> PreTrainedModel:
    """The tiny base with the fork's weights, in float64 and evaluation mode."""
    return load(stock_model(arch, implementation), starting_with(base_weights(arch, folder), "base."))


def base_weights(arch: str, folder: Path = DATA) -> dict[str, Tensor]:
    """The fork's weights of the base; every name starts with ``base.``."""
    return tensors_of(folder / f"{arch}_base_weights.safetensors")


def stock_model(arch: str, implementation: str = "eager") -> PreTrainedModel:
    """A stock model of the goldens' sizes, with random weights."""
    if arch == "roberta":
        config = RobertaConfig(
            vocab_size=71,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=20,
            type_vocab_size=1,
            num_labels=3,
            layer_norm_eps=1e-5,
            attn_implementation=implementation,
        )
        return RobertaForSequenceClassification(config)
    make_config, make_model = {
        "bart": (BartConfig, BartForConditionalGeneration),
        "mbart": (MBartConfig, MBartForConditionalGeneration),
    }[arch]
    config = make_config(
        vocab_size=71,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        max_position_embeddings=24,
        scale_embedding=arch == "mbart",
        decoder_start_token_id=2,
        attn_implementation=implementation,
    )
    return make_model(config)


def load(model: PreTrainedModel, weights: dict[str, Tensor]) -> PreTrainedModel:
    """Copy the base's weights, of which only tied ones may be missing; return it in float64 and evaluation mode."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    allowed = ("shared", "embed_tokens", "lm_head", "final_logits_bias", "position_ids")
    assert all(any(word in key for word in allowed) for key in missing), missing
    model.tie_weights()
    return model.double().eval()
