"""Encoder-decoder models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfadapt.architecture import ArchitectureMap, AttentionMap, StackMap, stack_map

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def t5(config: PretrainedConfig) -> ArchitectureMap:
    """T5: pre-norm by RMSNorm; each sub-layer is a module of its own that adds its input back."""
    return ArchitectureMap(config.model_type, (_t5_stack(config, "encoder"), _t5_stack(config, "decoder")))


def _t5_stack(config: PretrainedConfig, kind: str) -> StackMap:
    def attention(at: str) -> AttentionMap:
        return AttentionMap(f"{at}.q", f"{at}.k", f"{at}.v", f"{at}.o", module=at)

    decoder = kind == "decoder"
    last = "layer.2" if decoder else "layer.1"
    ffn_in = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
    return stack_map(
        config,
        f"{kind}.block",
        kind=kind,
        causal=decoder,
        style="pre",
        num_layers=config.num_decoder_layers if decoder else config.num_layers,
        attention=attention("layer.0.SelfAttention"),
        cross_attention=attention("layer.1.EncDecAttention") if decoder else None,
        ffn_in=tuple(f"{last}.DenseReluDense.{name}" for name in ffn_in),
        ffn_out=f"{last}.DenseReluDense.wo",
        ffn_size=config.d_ff,
        attn_out_dropout="layer.0.dropout",
        cross_out_dropout="layer.1.dropout" if decoder else None,
        ffn_out_dropout=f"{last}.dropout",
        norms={"pre_attention": "layer.0.layer_norm", "pre_ffn": f"{last}.layer_norm"}
        | ({"pre_cross": "layer.1.layer_norm"} if decoder else {}),
        final_norm=f"{kind}.final_layer_norm",
        embedding=f"{kind}.embed_tokens",
    )


def bart(config: PretrainedConfig) -> ArchitectureMap:
    """BART: post-norm; dropouts are function calls, so no leaf stands for them."""
    return ArchitectureMap(
        config.model_type,
        (_bart_stack(config, "encoder", "post", None), _bart_stack(config, "decoder", "post", None)),
    )


def mbart(config: PretrainedConfig) -> ArchitectureMap:
    """mBART: BART's names with norms before the sub-layers and one after the stack."""
    return ArchitectureMap(
        config.model_type,
        (_bart_stack(config, "encoder", "pre", "layer_norm"), _bart_stack(config, "decoder", "pre", "layer_norm")),
    )


def whisper(config: PretrainedConfig) -> ArchitectureMap:
    """Whisper: mBART's layers; the encoder starts with convolutions, so it has no word embedding."""
    return ArchitectureMap(
        config.model_type,
        (
            _bart_stack(config, "encoder", "pre", "layer_norm", embedding=None),
            _bart_stack(config, "decoder", "pre", "layer_norm"),
        ),
    )


def _bart_stack(
    config: PretrainedConfig, kind: str, style: str, final_norm: str | None, embedding: str | None = "embed_tokens"
) -> StackMap:
    def attention(at: str) -> AttentionMap:
        return AttentionMap(f"{at}.q_proj", f"{at}.k_proj", f"{at}.v_proj", f"{at}.out_proj", module=at)

    decoder = kind == "decoder"
    # A decoder used alone is never given encoder states, so its cross attention never runs.
    crosses = decoder and (config.is_encoder_decoder or bool(getattr(config, "add_cross_attention", False)))
    return stack_map(
        config,
        f"{kind}.layers",
        kind=kind,
        causal=decoder,
        style=style,
        num_layers=getattr(config, f"{kind}_layers"),
        num_heads=getattr(config, f"{kind}_attention_heads"),
        num_kv_heads=getattr(config, f"{kind}_attention_heads"),
        hidden_size=config.d_model,
        head_dim=config.d_model // getattr(config, f"{kind}_attention_heads"),
        attention=attention("self_attn"),
        cross_attention=attention("encoder_attn") if crosses else None,
        ffn_in=("fc1",),
        ffn_out="fc2",
        ffn_size=getattr(config, f"{kind}_ffn_dim"),
        norms={f"{style}_attention": "self_attn_layer_norm", f"{style}_ffn": "final_layer_norm"}
        | ({f"{style}_cross": "encoder_attn_layer_norm"} if crosses else {}),
        final_norm=f"{kind}.{final_norm}" if final_norm else None,
        embedding=f"{kind}.{embedding}" if embedding else None,
    )


ARCHITECTURES = {"t5": t5, "bart": bart, "mbart": mbart, "whisper": whisper}
