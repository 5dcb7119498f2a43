"""Image encoders and the two towers of CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfadapt.architecture import ArchitectureMap, AttentionMap, StackMap, stack_map

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def vit(config: PretrainedConfig) -> tuple[ArchitectureMap, ...]:
    """ViT: pre-norm, under the names of newer and of older releases of transformers.

    The newer layer has one dropout for both sub-layers, so neither can be told by its leaf.
    """
    at, norms = "attention.attention", {"pre_attention": "layernorm_before", "pre_ffn": "layernorm_after"}
    newer = stack_map(
        config,
        "layers",
        style="pre",
        attention=AttentionMap(
            "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", module="attention"
        ),
        ffn_in=("mlp.fc1",),
        ffn_out="mlp.fc2",
        norms=norms,
        final_norm="layernorm",
    )
    older = stack_map(
        config,
        "encoder.layer",
        style="pre",
        attention=AttentionMap(f"{at}.query", f"{at}.key", f"{at}.value", "attention.output.dense", module=at),
        ffn_in=("intermediate.dense",),
        ffn_out="output.dense",
        attn_out_dropout="attention.output.dropout",
        ffn_out_dropout="output.dropout",
        norms=norms,
        final_norm="layernorm",
    )
    return tuple(ArchitectureMap(config.model_type, (stack,), pooler="pooler") for stack in (newer, older))


def clip(config: PretrainedConfig) -> ArchitectureMap:
    """CLIP: a causal text tower and a vision tower of the same layer."""
    text = clip_text(config.text_config).under("text_model").stacks
    vision = clip_vision(config.vision_config).under("vision_model").stacks
    return ArchitectureMap(config.model_type, (*text, *vision), rereads_input=True)


def clip_text(config: PretrainedConfig) -> ArchitectureMap:
    """CLIP's text tower alone."""
    stack = _clip_stack(
        config, kind="text", causal=True, final_norm="final_layer_norm", embedding="embeddings.token_embedding"
    )
    # it pools the last token of each text
    return ArchitectureMap(config.model_type, (stack,), rereads_input=True)


def clip_vision(config: PretrainedConfig) -> ArchitectureMap:
    """CLIP's vision tower alone; only the pooled position passes its last norm."""
    stack = _clip_stack(config, kind="vision", causal=False)
    return ArchitectureMap(config.model_type, (stack,))


def _clip_stack(
    config: PretrainedConfig, kind: str, causal: bool, final_norm: str | None = None, embedding: str | None = None
) -> StackMap:
    at = "self_attn"
    return stack_map(
        config,
        "encoder.layers",
        kind=kind,
        causal=causal,
        style="pre",
        attention=AttentionMap(f"{at}.q_proj", f"{at}.k_proj", f"{at}.v_proj", f"{at}.out_proj", module=at),
        ffn_in=("mlp.fc1",),
        ffn_out="mlp.fc2",
        norms={"pre_attention": "layer_norm1", "pre_ffn": "layer_norm2"},
        final_norm=final_norm,
        embedding=embedding,
    )


ARCHITECTURES = {"vit": vit, "clip": clip, "clip_text_model": clip_text, "clip_vision_model": clip_vision}
