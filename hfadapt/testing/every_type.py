"""Tiny models of every type that transformers has, made from the types' own default configs.

A config is cut down by the names of its fields: widths, depths, heads, vocabularies and images become small, and what
depends on them is brought in line. Not every type can be made so; `tiny_of_type` says why.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..architecture.inputs import first_that_runs
from ..errors import HFAdaptError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["CannotBuild", "model_types", "shrink", "tiny_of_type"]

HIDDEN = 32
HEADS = 4
_INNER = 2 * HIDDEN
_MOST_PARAMETERS = 30_000_000
_MOST_KINDS = 4
_HEARD = 1e-4
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_DEPTH = (
    r"(num_)?(hidden_|encoder_|decoder_|text_|vision_)*layers|n_layers?|depth|num_blocks|.*num_hidden_layers|.*_layers"
)
_KEY_HEADS = r"(num_)?key_value_heads|num_kv_heads|.*num_key_value_heads"
# Pattern of a field's name to its small value; the first that fits counts.
_SMALL: tuple[tuple[str, int], ...] = (
    (r"(.*_)?vocab_size(_per_.*)?|.*_group_vocab|ngram_vocab_size_base|codebook_size|num_embeddings", 128),
    (r"num_kv_shared_layers", 0),
    (r"first_k_dense_replace|num_dense_layers|topk_group", 1),
    (r"n_group|num_expert_group", 2),
    (r"(mamba_)?n_?groups", 2),
    (_KEY_HEADS, 2),
    (r".*(num_)?(attention_)?heads?|n_heads?|(encoder|decoder)_attention_heads", HEADS),
    (_DEPTH, 2),
    (
        r"(.*_)?(intermediate|ffn|ff|feedforward|feed_forward|mlp|inner)_?(size|dim|hidden_size)?|d_ff|n_inner|ffn_hidden_size",
        _INNER,
    ),
    (r"head_dim|.*_head_dim|d_kv|d_head|dim_head|attention_head_size|kv_channels", 8),
    (
        r"(.*_)?(hidden_size|embed_dim|hidden_dim|embedding_size|embedding_dim|emb_dim|projection_dim|projection_size|proj_dim)"
        r"|d_model|d_latents|dim|n_embd|width|d_embed|hidden_size_global|pooler_output_size",
        HIDDEN,
    ),
    (r"image_size|img_size|crop_size", 32),
    (r"patch_size", 8),
    (r"num_frames|frames_per_clip", 2),
    (r"n_routed_experts|num_experts|num_local_experts|moe_num_experts|zero_expert_num", 4),
    (r"num_experts_per_tok(en)?|moe_topk|top_k_experts|moe_k", 2),
    (r"max_position_embeddings|n_positions|max_seq_len|max_target_positions", 64),
    (r"max_source_positions|base_channels|upsample_groups|codebook_dim|vector_quantization_hidden_dimension", HIDDEN),
    (r"num_layers_per_stack", 1),
    (r"image_embedding_size|task_seq_len", 4),
    (r"num_mel_bins", 16),
    (r"(mamba_d|ssm)_state(_size)?|state_size", 16),
    (r"num_filters|subsampling_conv_channels|num_latents", 8),
)
_CHEAP = (_SMALL[0][0], _DEPTH, r"num_kv_shared_layers", r"first_k_dense_replace|num_dense_layers|topk_group")
# What a field that is None by default needs to be.
_ABSENT: dict[str, Any] = {
    "vocab_size": 128,
    "head_dim": HIDDEN // HEADS,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": _INNER,
    "prediction_length": 4,
    "context_length": 8,
    "sliding_window": 8,
    "vocabulary_map": {"<image>": 100},
}
# Heads and their width, whose product is that of a state space.
_STATE_SPACES = (
    ("mamba_n_heads", "mamba_d_head"),
    ("n_mamba_heads", "mamba_headdim"),
    ("mamba_num_heads", "mamba_head_dim"),
)


class CannotBuild(Exception):
    """No tiny model of a type could be made, and why."""


def model_types() -> tuple[str, ...]:
    """Return every type that has a base model in the transformers that is installed."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return tuple(sorted(MODEL_MAPPING_NAMES))


def tiny_of_type(model_type: str, seed: int = 0) -> PreTrainedModel:
    """Return a tiny random model of a type, in evaluation mode.

    The smallest that runs on made-up inputs, else the smallest that can be built.

    Args:
        model_type: One of `model_types`.
        seed: Of the weights.

    Raises:
        CannotBuild: Its config cannot be cut down, or the model that it makes cannot be built small.
    """
    failures: list[str] = []
    built: PreTrainedModel | None = None
    for strength, grouped in ((3, True), (3, False), (2, True), (1, True)):
        try:
            model = _build(model_type, strength, grouped, seed)
        except Exception as error:  # every config and every model has conditions of its own
            failures.append(str(error) if isinstance(error, CannotBuild) else f"{type(error).__name__}: {error}"[:220])
            continue
        if grouped and _values_have_all_heads(model):
            continue
        if _runs(model):
            return model
        built = built or model
    if built is None:
        raise CannotBuild("; ".join(dict.fromkeys(failures)))
    return built


def _build(model_type: str, strength: int, grouped: bool, seed: int) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(model_type)
    config.architectures = config.architectures or []  # read where a type has several base models
    shrink(config, strength, grouped)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    if size > _MOST_PARAMETERS:
        raise CannotBuild(f"{size:,} parameters")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        model = model.float().eval()
        _settle(model)
    return model


def _settle(model: PreTrainedModel) -> None:
    """Give batch norms the statistics of what they read, as a trained model has them, where nothing passes without.

    Those of a model that never ran let every stage make its input smaller, until nothing of it is left (MobileViT).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    try:
        inputs = first_that_runs(model, 2, lambda given: model(**given))[0]
        if _hears(model, inputs):
            return
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        model(**inputs)
        settled = _hears(model.eval(), inputs)
    except Exception:  # a model may refuse anything, such as statistics of a single value
        settled = False
    for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
        norm.momentum = momentum
        norm.eval()
        if not settled:
            for name, buffer in buffers.items():
                norm.get_buffer(name).copy_(buffer)


def _hears(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """Whether another input gives another output, by more than float32 rounds."""
    other = {k: v + 0.5 if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    one, two = (model(**given)[0] for given in (inputs, other))
    return not torch.is_tensor(one) or bool((one - two).abs().max() > _HEARD * one.abs().max())


def _values_have_all_heads(model: PreTrainedModel) -> bool:
    """Whether an attention has fewer heads for keys than for values, which eager attention cannot take (Nemotron 3)."""
    return any(
        getattr(module, "num_key_value_groups", 1) != 1
        and hasattr(module, "k_proj")
        and hasattr(module, "v_proj")
        and hasattr(module, "q_proj")
        and _width(module.q_proj) == _width(module.v_proj) != _width(module.k_proj)
        for module in model.modules()
    )


def _width(module: Any) -> int:
    return getattr(module, "out_features", 0)


def _runs(model: PreTrainedModel) -> bool:
    try:
        with torch.no_grad():
            first_that_runs(model, 1, lambda given: model(**given))
    except HFAdaptError:
        return False
    return True


def shrink(config: PretrainedConfig, strength: int = 3, grouped: bool = True) -> None:
    """Cut a config down in place, and those inside it.

    Args:
        config: Of any type.
        strength: 1 cuts depths and vocabularies, 2 lists of depths and widths as well, 3 widths, heads and images too.
        grouped: Fewer heads for keys and values than for queries.
    """
    own = dict(vars(config))
    depth = next((own[name] for name in _DEPTHS if isinstance(own.get(name), int)), 0)
    kinds = {k: v for k, v in own.items() if _is_list(v) and _names_layers(k)}
    depth = len(next(iter(kinds.values()), ())) or depth
    by_layer = {k: v for k, v in own.items() if _is_list(v) and len(v) == depth and not k.startswith("mtp")}
    layers = _one_of_every_kind([v for v in by_layer.values() if not _is_numbers(v)])
    for name, value in own.items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            shrink(value, strength, grouped)
        elif layers and name in by_layer and (kinds or not _is_widths(name)):
            picked = (value[i] for i in layers)
            setattr(config, name, type(value)(_small(name, v, strength) if type(v) is int else v for v in picked))
        elif name.startswith("_") or isinstance(value, bool):
            continue
        elif isinstance(value, int):
            setattr(config, name, _small(name, value, strength))
        elif _is_list(value) and strength >= 2:
            _shrink_list(config, name, value)
        elif value is None and name in _ABSENT and strength >= 2:
            setattr(config, name, _ABSENT[name])
            if name == "vocab_size" and own.get("pad_token_id") is None:
                config.pad_token_id = 1
    if layers:
        for name in _DEPTHS:
            if name in own:
                setattr(config, name, len(layers))
    if strength >= 2:
        _bring_in_line(config, strength)
    if not grouped:
        for name in own:
            if re.fullmatch(_KEY_HEADS, name) and own[name] is not None:
                setattr(config, name, HEADS)
    for name, value in list(vars(config).items()):
        if name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= 128:
            setattr(config, name, value % 100 + 20)


def _bring_in_line(config: Any, strength: int) -> None:
    """Make small what depends on other fields: widths of heads, state spaces, layers by their number, patches."""
    own = vars(config)
    kinds = own.get("layer_types")
    if kinds and set(kinds) == {"linear_attention"}:  # a cache is asked for its length by an attention layer
        config.layer_types = [*kinds[:-1], "full_attention"]
    if own.get("rope_parameters") == {} and kinds:
        config.rope_parameters = {kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in kinds}
    for name, value in (("attn_layer_period", 2), ("attn_layer_offset", 1), ("full_attention_interval", 2)):
        if name in own:
            setattr(config, name, value)
    if "attn_layer_indices" in own:
        config.attn_layer_indices = [1]
    if "conv_L_cache" in own and kinds is None:
        config.layer_types = ["conv", "full_attention"]
    if "hybrid_layer_ids" in own:
        config.hybrid_layer_ids = [i for i, kind in enumerate(config.layers_block_type) if kind == "hybrid"]
    if strength < 3:
        return
    width = own.get("qk_rope_head_dim") or own.get("head_dim") or HIDDEN // HEADS
    rope = own.get("rope_parameters")
    share = rope.get("partial_rotary_factor", 1) if isinstance(rope, dict) else 1
    part = int(width * share) // 2
    if isinstance(rope, dict) and "rope_theta" in rope:  # where there are sections for time, height and width
        rope["mrope_section"] = [part - 2 * (part // 4), part // 4, part // 4]
    if isinstance(own.get("rotary_dim"), int):
        config.rotary_dim = 4
    if isinstance(own.get("window_size"), int) and isinstance(own.get("depths"), (list, tuple)):
        config.window_size = 2
        if isinstance(own.get("patch_size"), int):
            config.patch_size = 2
    if isinstance(own.get("n_routed_experts"), int) and own.get("num_experts_per_tok") is None:
        config.num_experts_per_tok = 2
    if "expand" in own and "state_size" in own and "num_heads" in own:
        config.head_dim = own["expand"] * HIDDEN // HEADS
    for heads, size in _STATE_SPACES:
        if heads in own and size in own:
            setattr(config, heads, HEADS)
            setattr(config, size, _INNER // HEADS)
    if isinstance(own.get("mamba_d_ssm"), int):
        config.mamba_d_ssm = _INNER
    if "attention_hidden_size" in own and "attention_head_dim" in own:
        config.attention_hidden_size, config.attention_head_dim = _INNER, _INNER // HEADS
    if "qk_rope_head_dim" in own:
        config.qk_head_dim = own["qk_rope_head_dim"] + own.get("qk_nope_head_dim", 0)
        if own.get("num_key_value_heads") is not None:
            config.num_key_value_heads = HEADS
            config.head_dim = own["qk_rope_head_dim"] if share == 1 else config.qk_head_dim
    if "num_layers_per_stack" in own and "H_cycles" in own:
        config.num_hidden_layers = own["H_cycles"] * (own["L_cycles"] + 1)
    if isinstance(own.get("patch_dim"), int):
        config.patch_dim = own.get("num_channels", 3) * own["patch_size"] ** 2
    if own.get("axial_pos_embds"):  # in training their shape gives the number of tokens
        config.axial_pos_embds = False
    if "num_feat_extract_layers" in own:
        config.num_feat_extract_layers = len(own["conv_dim"])
    if "embed_dim_per_stage" in own:
        config.embed_dim_per_stage = [HIDDEN * 2**i for i in range(len(own["embed_dim_per_stage"]))]
    if "backbone_channel_list" in own:
        config.backbone_channel_list = [HIDDEN * 2**i for i in reversed(range(len(own["backbone_channel_list"])))]


def _small(name: str, value: int, strength: int) -> int:
    for pattern, small in _SMALL:
        if re.fullmatch(pattern, name):
            return min(value, small) if strength >= 3 or pattern in _CHEAP else value
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0


def _is_numbers(value: Any) -> bool:
    return all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in value)


def _names_layers(name: str) -> bool:
    return name in ("layer_types", "layers_block_type", "layer_type", "block_types", "mlp_layer_types")


def _is_widths(name: str) -> bool:
    return re.fullmatch(r"(.*_)?(hidden_sizes|embed_dims?|dims|depths|heads)", name) is not None


def _one_of_every_kind(lists: list[list | tuple]) -> list[int]:
    """The numbers of two to four layers, among which are layers of every kind; none without lists of kinds."""
    if not lists:
        return []
    seen: list[set[str]] = [set() for _ in lists]
    picked = []
    for layer, kinds in enumerate(zip(*lists, strict=True)):
        new = [str(kind) not in known for kind, known in zip(kinds, seen, strict=True)]
        # A kind that shares weights between its layers needs two of them.
        if any(new) or "hybrid" in kinds:
            picked.append(layer)
        for kind, known in zip(kinds, seen, strict=True):
            known.add(str(kind))
    if len(picked) == 1 and len(lists[0]) > 1:
        picked.append(1)
    return picked[:_MOST_KINDS]


def _shrink_list(config: Any, name: str, value: list | tuple) -> None:
    make = type(value)
    if re.fullmatch(r"(encoder_|decoder_)?depths|num_(block|layer)s(_per_\w+)?|block_sizes", name):
        setattr(config, name, make(1 for _ in value))
    elif re.fullmatch(r"(.*_)?hidden_sizes|embed_dims?|dims|neck_hidden_sizes", name):
        setattr(config, name, make(16 * (i + 1) for i in range(len(value))))
    elif re.fullmatch(r"image_size|img_size|input_size", name):
        setattr(config, name, make(min(one, 64) for one in value))
    elif re.fullmatch(r"num_(attention_)?heads", name):
        setattr(config, name, make(2 for _ in value))
