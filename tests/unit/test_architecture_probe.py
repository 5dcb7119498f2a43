"""Models of families that no table knows: mapped whole, or refused with what was found and what is missing."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

import hfadapt
from hfadapt.architecture import resolve
from hfadapt.architecture.probe import probe
from hfadapt.errors import ArchitectureError, AttachError
from hfadapt.testing.every_type import tiny_of_type
from hfadapt.testing.tiny import FFN, HEADS, HIDDEN, LAYERS, POSITIONS, VOCABULARY, tiny_inputs, tiny_model
from tests.unit.releases import older

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "max_position_embeddings": POSITIONS,
}
LLAMA = {**COMMON, "num_key_value_heads": 2, "pad_token_id": 0}
GPT = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": FFN,
    "max_position_embeddings": POSITIONS,
}
T5 = {"vocab_size": VOCABULARY, "d_model": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS, "d_kv": 8, "d_ff": FFN}
IMAGE = {**COMMON, "image_size": 16, "patch_size": 4}
SOUND = {**COMMON, "conv_dim": [32, 32], "conv_kernel": [4, 4], "conv_stride": [4, 4], "num_feat_extract_layers": 2}

MLA = {
    **LLAMA,
    "num_key_value_heads": HEADS,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": FFN,
    "first_k_dense_replace": 1,
}
STATE_SPACE = {
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": FFN,
    "head_dim": 8,
}
# Renamed in 5.24.
DINO_QUERY = "attention.attention.query" if older("transformers", "5.24") else "attention.q_proj"
# Family: settings, then style, query (or fused) path, fused layout and pre-norms of the last stack.
MAPPED = {
    "camembert": (COMMON, "post", "attention.self.query", None),
    "roformer": (COMMON, "post", "attention.self.query", None),
    "rembert": (COMMON, "post", "attention.self.query", None),
    "deberta": (COMMON, "post", "attention.self.in_proj", "unknown"),
    "megatron-bert": (COMMON, "pre", "attention.self.query", None),
    "roberta-prelayernorm": (COMMON, "pre", "attention.self.query", None),
    "esm": ({**COMMON, "pad_token_id": 1, "mask_token_id": 3}, "pre", "attention.self.query", None),
    "phi": (LLAMA, "parallel", "self_attn.q_proj", None),
    "gptj": ({**GPT, "rotary_dim": 4}, "parallel", "attn.q_proj", None),
    "gpt_neox": (COMMON, "parallel", "attention.query_key_value", "heads"),
    "falcon": (COMMON, "parallel", "self_attention.query_key_value", "blocks"),
    "cohere": (LLAMA, "parallel", "self_attn.q_proj", None),
    "bloom": (
        {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
        "pre",
        "self_attention.query_key_value",
        "heads",
    ),
    "persimmon": (LLAMA, "pre", "self_attn.query_key_value", "heads"),
    "phi3": (LLAMA, "pre", "self_attn.qkv_proj", "blocks"),
    "gpt_bigcode": (GPT, "pre", "attn.c_attn", "blocks"),
    "biogpt": (COMMON, "pre", "self_attn.q_proj", None),
    "stablelm": (LLAMA, "pre", "self_attn.q_proj", None),
    "gemma3_text": ({**LLAMA, "head_dim": 8}, "sandwich", "self_attn.q_proj", None),
    "olmo2": (LLAMA, "sandwich", "self_attn.q_proj", None),
    "exaone4": (LLAMA, "sandwich", "self_attn.q_proj", None),
    "openai-gpt": (GPT, "post", "attn.c_attn", "blocks"),
    "pegasus": (BART, "pre", "self_attn.q_proj", None),
    "marian": (
        {**BART, "decoder_vocab_size": VOCABULARY, "decoder_start_token_id": 3, "pad_token_id": 1},
        "post",
        "self_attn.q_proj",
        None,
    ),
    "mt5": (T5, "pre", "layer.0.SelfAttention.q", None),
    "siglip": ({"text_config": COMMON, "vision_config": IMAGE}, "pre", "self_attn.q_proj", None),
    "pixtral": (IMAGE, "pre", "attention.q_proj", None),
    "wav2vec2": (SOUND, "post", "attention.q_proj", None),
    "qwen2_moe": (LLAMA, "pre", "self_attn.q_proj", None),
    "mixtral": (LLAMA, "pre", "self_attn.q_proj", None),
    "dinov2": (
        IMAGE,
        "pre",
        DINO_QUERY,
        None,
    ),
    "granite": ({**LLAMA, "residual_multiplier": 0.5}, "pre", "self_attn.q_proj", None),
}

# Family: settings, words that the refusal must hold, and a way out that works for the model.
REFUSED = {
    "convnext": (
        {"hidden_sizes": [HIDDEN] * 4, "depths": [1] * 4, "image_size": 32},
        "attention: no linear sees more than its own position",
        "map-an-architecture",
    ),
    "resnet": (
        {"embedding_size": HIDDEN, "hidden_sizes": [HIDDEN] * 4, "depths": [1] * 4},
        "no stack of equal layers",
        "lora with target_modules=('convolution',), convolutions",
    ),
}


def build(name, settings):
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(name, **settings)).eval()


@pytest.mark.parametrize("name", MAPPED)
def test_unseen_family_is_mapped_whole(name):
    settings, style, first, layout = MAPPED[name]
    arch = resolve(build(name, settings))
    stack = arch.stacks[-1]
    assert arch.source == "probe"
    assert stack.style == style
    assert stack.attention.first == first
    assert (stack.attention.fused_layout if stack.attention.fused else None) == layout
    assert (stack.num_layers, stack.num_heads, stack.hidden_size) == (LAYERS, HEADS, HIDDEN)


@pytest.mark.parametrize("name", MAPPED)
def test_every_place_of_an_unseen_family_can_be_reached(name):
    model = build(name, MAPPED[name][0])
    modules = dict(model.named_modules())
    assert set(resolve(model).paths()) <= set(modules)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_mapped_whole_is_refused_with_what_is_missing(name):
    settings, words, way_out = REFUSED[name]
    with pytest.raises(ArchitectureError) as caught:
        resolve(build(name, settings))
    assert words in str(caught.value)
    assert way_out in str(caught.value)


@pytest.mark.parametrize("name", ["olmo2", "exaone4"])
def test_norms_on_sublayer_outputs_alone_are_no_parallel_layer(name):
    stack = resolve(build(name, LLAMA)).stacks[0]
    assert stack.style == "sandwich"
    assert set(stack.norms) == {"sandwich_attention", "sandwich_ffn"}
    assert stack.first_leaf == "self_attn.q_proj"


def test_names_play_no_part():
    model = tiny_model("bert")
    for layer in model.encoder.layer:
        inner = layer.attention.self
        # Swap what the names say: `query` now holds the values and `value` the queries, and the code reads them so.
        inner.query, inner.value = inner.value, inner.query
        inner.forward = _swapped.__get__(inner)
    attention = probe(model).stacks[0].attention
    assert (attention.query, attention.key, attention.value) == (
        "attention.self.value",
        "attention.self.key",
        "attention.self.query",
    )


def _swapped(self, *args, **kwargs):
    self.query, self.value = self.value, self.query
    try:
        return type(self).forward(self, *args, **kwargs)
    finally:
        self.query, self.value = self.value, self.query


def test_the_model_is_left_as_it_was():
    model = tiny_model("gpt2").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    probe(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_fresh_norms_of_ones_do_not_blur_the_roles():
    model = build("camembert", COMMON)
    assert probe(model).stacks[0].norms == {
        "post_attention": "attention.output.LayerNorm",
        "post_ffn": "output.LayerNorm",
    }


def test_half_precision_models_are_mapped():
    model = tiny_model("llama").to(torch.bfloat16)
    assert probe(model) == resolve(model)


def test_own_inputs_are_used():
    model = tiny_model("bart", "sequence-classification")
    arch = probe(model, tiny_inputs("bart", "sequence-classification"))
    assert arch == resolve(model)


def test_a_model_that_cannot_be_run_says_why_and_what_to_do():
    model = build("camembert", COMMON)
    model.forward = _refuse.__get__(model)
    with pytest.raises(ArchitectureError, match="not today") as caught:
        probe(model)
    assert "inputs of your own" in str(caught.value)


@pytest.mark.parametrize("name", ["camembert", "phi3", "olmo2", "bloom", "marian", "siglip", "gemma3_text"])
def test_a_model_without_weights_is_mapped_like_one_with_weights(name):
    settings = MAPPED[name][0]
    with torch.device("meta"):
        model = build(name, settings)
    assert resolve(model) == resolve(build(name, settings))


def test_a_deep_model_without_weights_gets_all_its_layers():
    with torch.device("meta"):
        model = build("olmo2", {**LLAMA, "num_hidden_layers": 40, "vocab_size": 100_000})
    assert resolve(model).stacks[0].num_layers == 40


def test_uneven_layers_are_found_without_weights():
    with torch.device("meta"):
        model = build("lfm2", {**LLAMA, "num_hidden_layers": 3, "layer_types": ["full_attention"] * 2 + ["conv"]})
    with pytest.raises(ArchitectureError, match=r"layers\.2|layers\.0"):
        resolve(model)


def _refuse(self, input_ids=None):
    raise RuntimeError("not today")


def test_a_model_without_layers_is_refused():
    with pytest.raises(ArchitectureError, match="no stack of equal layers"):
        resolve(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


@pytest.mark.parametrize("name", ["qwen2_moe", "mixtral"])
def test_a_mixture_of_experts_is_one_feed_forward_slot(name):
    model = build(name, MAPPED[name][0])
    stack = resolve(model).stacks[0]
    assert (stack.ffn_in, stack.ffn_out, stack.ffn_is_block) == (("mlp",), "mlp", True)
    assert stack.norms["pre_ffn"] == "post_attention_layernorm"
    for method in ("bottleneck", "parallel", "low_rank", "pal", "lora"):
        hfadapt.attach(model, method).detach()
    with pytest.raises(AttachError, match="matched nothing for 'ffn_in'"):
        hfadapt.attach(model, hfadapt.LoRA(target_modules=("ffn_in",)))


def test_deltas_stand_behind_a_learned_scale_that_is_a_module():
    stack = resolve(build("dinov2", IMAGE)).stacks[0]
    assert (stack.attn_out_dropout, stack.ffn_out_dropout) == ("layer_scale1", "layer_scale2")


def test_layers_without_slots_are_left_out_and_said(caplog):
    model = build("lfm2", {**LLAMA, "layer_types": ["conv", "full_attention"]})
    found = resolve(model)
    stack = replace(found.stacks[0], left_out={0: "it has none"})
    with caplog.at_level("WARNING"):
        hfadapt.attach(model, "bottleneck", arch=replace(found, stacks=(stack,)))
    assert "bottleneck leaves out layers 0 of layers" in caplog.text
    assert {delta.site.layer for _, delta in hfadapt.runtime.deltas_of(model)} == {1}
    with pytest.raises(AttachError, match="no chosen layer has slots"):
        hfadapt.attach(model, hfadapt.Bottleneck(layers=(0,)), "b")


# Family: settings; then what stands for attention in its first layer, what reads it, whether that has heads, and style.
BLOCKS = {
    "deepseek_v3": (MLA, "self_attn.o_proj", "self_attn.q_a_proj", True, "pre"),
    "minicpm3": ({**MLA, "head_dim": 4}, "self_attn.o_proj", "self_attn.q_a_proj", True, "pre"),
    "lfm2": ({**LLAMA, "layer_types": ["conv", "full_attention"]}, "conv.out_proj", "conv.in_proj", False, "pre"),
    "mamba": ({**COMMON, "state_size": 4}, "mixer.out_proj", "mixer.in_proj", False, "pre"),
    "gemma4_text": (LLAMA, "self_attn.o_proj", "self_attn.q_proj", True, "sandwich"),
    "longformer": ({**COMMON, "attention_window": 4}, "attention.output.dense", "attention.self", False, "post"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_what_mixes_tokens_is_known_by_its_ends_where_no_linear_alone_makes_the_queries(name):
    settings, output, reads, heads, style = BLOCKS[name]
    stack = resolve(build(name, settings)).stacks[0]
    first = stack.others.get(0, stack)
    assert (first.attention.output, first.attention.first) == (output, reads)
    assert (bool(first.num_heads), first.style, first.causal) == (heads, style, name != "longformer")
    assert first.attention.query is None


def test_low_rank_attention_has_heads_of_two_widths():
    stack = resolve(build("deepseek_v3", MLA)).stacks[0]
    assert (stack.num_heads, stack.num_kv_heads, stack.head_dim, stack.value_dim) == (HEADS, HEADS, 12, 6)


def test_a_gate_is_no_query():
    attention = resolve(build("afmoe", {**LLAMA, "head_dim": 8, "num_dense_layers": 2})).stacks[0].attention
    assert (attention.query, attention.value) == ("self_attn.q_proj", "self_attn.v_proj")


def test_a_layer_of_one_sub_layer_says_which_part_it_has():
    kinds = ["mamba", "attention", "moe"]
    stack = resolve(build("nemotron_h", {**LLAMA, **STATE_SPACE, "layers_block_type": kinds})).stacks[0]
    has = [[part for part in ("attention", "cross", "ffn") if stack.layer(i).has(part)] for i in range(3)]
    assert has == [["attention"], ["attention"], ["ffn"]]
    with pytest.raises(ArchitectureError, match="no such part"):
        _ = stack.layer(0).ffn_out


def test_a_dense_layer_among_mixtures_of_experts_keeps_slots_of_its_own():
    stack = resolve(build("qwen3_moe", {**LLAMA, "mlp_only_layers": [0], "head_dim": 8})).stacks[0]
    dense, experts = stack.layer(0), stack.layer(1)
    assert dense.ffn_out == "layers.0.mlp.down_proj" and experts.ffn_out == "layers.1.mlp"


def test_trained_statistics_of_batch_norms_leave_the_map_as_it_is():
    """Small variances, as training leaves them: with noise on them they would be negative, and no number pass."""
    model = tiny_of_type("levit")
    found = probe(model)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_var.uniform_(0.001, 0.1)
            norm.running_mean.uniform_(-5, 5)
    assert probe(model) == found
    assert [stack.path for stack in found.stacks] == [f"encoder.stages.{i}.layers" for i in range(3)]
