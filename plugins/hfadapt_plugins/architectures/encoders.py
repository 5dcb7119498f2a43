"""Text encoders, most of them BERT's layout under other names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hfadapt.architecture import ArchitectureMap, AttentionMap, stack_map

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def bert(config: PretrainedConfig) -> ArchitectureMap:
    """BERT and those that kept its layer: post-norm, sums inside the two `output` modules."""
    decoder = bool(getattr(config, "is_decoder", False))
    crosses = decoder and bool(getattr(config, "add_cross_attention", False))
    stack = stack_map(
        config,
        "encoder.layer",
        kind="decoder" if decoder else "encoder",
        causal=decoder,
        style="post",
        attention=_bert_attention("attention"),
        cross_attention=_bert_attention("crossattention") if crosses else None,
        ffn_in=("intermediate.dense",),
        ffn_out="output.dense",
        attn_out_dropout="attention.output.dropout",
        cross_out_dropout="crossattention.output.dropout" if crosses else None,
        ffn_out_dropout="output.dropout",
        norms={"post_attention": "attention.output.LayerNorm", "post_ffn": "output.LayerNorm"}
        | ({"post_cross": "crossattention.output.LayerNorm"} if crosses else {}),
        embedding="embeddings.word_embeddings",
    )
    return ArchitectureMap(config.model_type, (stack,), pooler="pooler")


def _bert_attention(at: str) -> AttentionMap:
    return AttentionMap(f"{at}.self.query", f"{at}.self.key", f"{at}.self.value", f"{at}.output.dense", f"{at}.self")


def deberta_v2(config: PretrainedConfig) -> ArchitectureMap:
    """DeBERTa v2 and v3: BERT's layer with disentangled attention."""
    at = "attention.self"
    stack = stack_map(
        config,
        "encoder.layer",
        style="post",
        attention=AttentionMap(
            f"{at}.query_proj", f"{at}.key_proj", f"{at}.value_proj", "attention.output.dense", module=at
        ),
        ffn_in=("intermediate.dense",),
        ffn_out="output.dense",
        attn_out_dropout="attention.output.dropout",
        ffn_out_dropout="output.dropout",
        norms={"post_attention": "attention.output.LayerNorm", "post_ffn": "output.LayerNorm"},
        embedding="embeddings.word_embeddings",
        # DeBERTa v3 projects its position table with the layer's own query and key projections.
        reads_shared_table="disentangled_attention_bias" if getattr(config, "share_att_key", False) else "",
    )
    # version 2 convolves over the first layer's input
    convolves = bool(getattr(config, "conv_kernel_size", 0))
    return ArchitectureMap(config.model_type, (stack,), rereads_input=convolves)


def xlm(config: PretrainedConfig) -> ArchitectureMap | tuple[()]:
    """XLM and FlauBERT: post-norm layers whose parts stand in four lists beside each other; nothing holds a layer.

    FlauBERT's pre-norm form, whose layers have no module at their end, has no map.
    """
    if getattr(config, "pre_norm", False):
        return ()
    kinds = [
        stack_map(
            config,
            "attentions",
            num_layers=config.n_layers,
            hidden_size=config.emb_dim,
            num_heads=config.n_heads,
            num_kv_heads=config.n_heads,
            head_dim=config.emb_dim // config.n_heads,
            ffn_size=4 * config.emb_dim,
            causal=bool(config.causal),
            kind="decoder" if config.causal else "encoder",
            style="post",
            attention=AttentionMap("q_lin", "k_lin", "v_lin", "out_lin", module=""),
            ffn_in=(f"^^.ffns.{layer}.lin1",),
            ffn_out=f"^^.ffns.{layer}.lin2",
            norms={"post_attention": f"^^.layer_norm1.{layer}", "post_ffn": f"^^.layer_norm2.{layer}"},
            embedding="embeddings",
        )
        for layer in range(config.n_layers)
    ]
    stack = replace(kinds[0], others=dict(enumerate(kinds)))
    # Sums stand between the parts, where rows cannot become more on the way.
    return ArchitectureMap(config.model_type, (stack,), rereads_input=True)


def distilbert(config: PretrainedConfig) -> ArchitectureMap:
    """DistilBERT: half of BERT's layers, no dropout after attention."""
    stack = stack_map(
        config,
        "transformer.layer",
        style="post",
        attention=AttentionMap(
            "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", module="attention"
        ),
        ffn_in=("ffn.lin1",),
        ffn_out="ffn.lin2",
        ffn_size=config.hidden_dim,
        ffn_out_dropout="ffn.dropout",
        norms={"post_attention": "sa_layer_norm", "post_ffn": "output_layer_norm"},
        embedding="embeddings.word_embeddings",
    )
    return ArchitectureMap(config.model_type, (stack,))


def albert(config: PretrainedConfig) -> ArchitectureMap:
    """ALBERT: few layer modules, each called many times; depth is counted by calls."""
    groups, inner, calls = config.num_hidden_groups, config.inner_group_num, config.num_hidden_layers
    stack = stack_map(
        config,
        "encoder.albert_layer_groups",
        layer_paths=tuple(
            f"encoder.albert_layer_groups.{int(call / (calls / groups))}.albert_layers.{number}"
            for call in range(calls)
            for number in range(inner)
        ),
        style="post",
        attention=AttentionMap(
            "attention.query", "attention.key", "attention.value", "attention.dense", module="attention"
        ),
        ffn_in=("ffn",),
        ffn_out="ffn_output",
        attn_out_dropout="attention.output_dropout",
        norms={"post_attention": "attention.LayerNorm", "post_ffn": "full_layer_layer_norm"},
        embedding="embeddings.word_embeddings",
    )
    return ArchitectureMap(config.model_type, (stack,), pooler="pooler")


def mpnet(config: PretrainedConfig) -> ArchitectureMap:
    """MPNet: BERT's layer with a shared relative position bias."""
    at = "attention.attn"
    stack = stack_map(
        config,
        "encoder.layer",
        style="post",
        attention=AttentionMap(f"{at}.q", f"{at}.k", f"{at}.v", f"{at}.o", module=at),
        ffn_in=("intermediate.dense",),
        ffn_out="output.dense",
        attn_out_dropout="attention.dropout",
        ffn_out_dropout="output.dropout",
        norms={"post_attention": "attention.LayerNorm", "post_ffn": "output.LayerNorm"},
        embedding="embeddings.word_embeddings",
    )
    return ArchitectureMap(config.model_type, (stack,), pooler="pooler")


def modernbert(config: PretrainedConfig) -> ArchitectureMap:
    """ModernBERT: pre-norm, one linear for q, k, v and one for gate and value; the first norm is an Identity."""
    stack = stack_map(
        config,
        "layers",
        style="pre",
        attention=AttentionMap(None, None, None, "attn.Wo", module="attn", fused="attn.Wqkv"),
        ffn_in=("mlp.Wi",),
        ffn_out="mlp.Wo",
        ffn_gated_in_one=True,
        attn_out_dropout="attn.out_drop" if config.attention_dropout > 0.0 else None,
        norms={"pre_attention": "attn_norm", "pre_ffn": "mlp_norm"},
        final_norm="final_norm",
        embedding="embeddings.tok_embeddings",
    )
    return ArchitectureMap(config.model_type, (stack,))


ARCHITECTURES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), bert),
    "deberta-v2": deberta_v2,
    "distilbert": distilbert,
    "xlm": xlm,
    "flaubert": xlm,
    "albert": albert,
    "mpnet": mpnet,
    "modernbert": modernbert,
}
