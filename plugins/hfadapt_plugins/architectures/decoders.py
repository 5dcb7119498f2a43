"""Causal language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfadapt.architecture import ArchitectureMap, AttentionMap, stack_map

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SELF_ATTENTION = AttentionMap(
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", module="self_attn"
)


def gpt2(config: PretrainedConfig) -> ArchitectureMap:
    """GPT-2: pre-norm, Conv1D linears, q, k and v from one of them."""
    stack = stack_map(
        config,
        "h",
        kind="decoder",
        causal=True,
        style="pre",
        attention=AttentionMap(None, None, None, "attn.c_proj", module="attn", fused="attn.c_attn"),
        ffn_in=("mlp.c_fc",),
        ffn_out="mlp.c_proj",
        ffn_size=config.n_inner or 4 * config.n_embd,
        attn_out_dropout="attn.resid_dropout",
        ffn_out_dropout="mlp.dropout",
        norms={"pre_attention": "ln_1", "pre_ffn": "ln_2"},
        final_norm="ln_f",
        embedding="wte",
    )
    return ArchitectureMap(config.model_type, (stack,))


def llama(config: PretrainedConfig) -> ArchitectureMap:
    """Llama and those that kept its layer: pre-norm by RMSNorm, gated feed-forward part, no dropout.

    `post_attention_layernorm` is the norm before the feed-forward part, whatever its name says.
    """
    stack = stack_map(
        config,
        "layers",
        kind="decoder",
        causal=True,
        style="pre",
        attention=_SELF_ATTENTION,
        ffn_in=("mlp.gate_proj", "mlp.up_proj"),
        ffn_out="mlp.down_proj",
        norms={"pre_attention": "input_layernorm", "pre_ffn": "post_attention_layernorm"},
        final_norm="norm",
        embedding="embed_tokens",
    )
    return ArchitectureMap(config.model_type, (stack,))


def gemma2(config: PretrainedConfig) -> ArchitectureMap:
    """Gemma 2: norms before and after each sub-layer, the second inside the residual branch."""
    stack = stack_map(
        config,
        "layers",
        kind="decoder",
        causal=True,
        style="sandwich",
        attention=_SELF_ATTENTION,
        ffn_in=("mlp.gate_proj", "mlp.up_proj"),
        ffn_out="mlp.down_proj",
        norms={
            "pre_attention": "input_layernorm",
            "sandwich_attention": "post_attention_layernorm",
            "pre_ffn": "pre_feedforward_layernorm",
            "sandwich_ffn": "post_feedforward_layernorm",
        },
        final_norm="norm",
        embedding="embed_tokens",
    )
    return ArchitectureMap(config.model_type, (stack,))


def opt(config: PretrainedConfig) -> ArchitectureMap:
    """OPT: the feed-forward part flattens batch and time; the 350m size is post-norm and projects its output."""
    pre = config.do_layer_norm_before
    norms = ("pre_attention", "pre_ffn") if pre else ("post_attention", "post_ffn")
    stack = stack_map(
        config,
        "decoder.layers",
        kind="decoder",
        causal=True,
        style="pre" if pre else "post",
        attention=AttentionMap(
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", module="self_attn"
        ),
        ffn_in=("fc1",),
        ffn_out="fc2",
        ffn_size=config.ffn_dim,
        flat_ffn=True,
        norms=dict(zip(norms, ("self_attn_layer_norm", "final_layer_norm"), strict=True)),
        final_norm="decoder.final_layer_norm" if pre and not config._remove_final_layer_norm else None,
        projection_out="decoder.project_out" if config.word_embed_proj_dim != config.hidden_size else None,
        embedding="decoder.embed_tokens",
    )
    return ArchitectureMap(config.model_type, (stack,))


ARCHITECTURES = {
    "gpt2": gpt2,
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma"), llama),
    "gemma2": gemma2,
    "opt": opt,
}
