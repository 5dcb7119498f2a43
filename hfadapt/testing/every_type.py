"""Tiny models of every type that transformers has, made from the types' own default configs.

A config is cut down by the names of its fields: widths, depths, heads, vocabularies and images become small, and what
depends on them is brought in line. Not every type can be made so; `tiny_of_type` says why.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["CannotBuild", "model_types", "shrink", "tiny_of_type"]

HIDDEN = 32
HEADS = 4
_MOST_PARAMETERS = 30_000_000
# Pattern of a field's name to its small value; the first that fits counts.
_SMALL: tuple[tuple[str, int], ...] = (
    (r"(.*_)?vocab_size(_per_.*)?", 128),
    (r"(num_)?key_value_heads|num_kv_heads|.*num_key_value_heads", 2),
    (r".*(num_)?(attention_)?heads?|n_heads?|(encoder|decoder)_attention_heads", HEADS),
    (
        r"(num_)?(hidden_|encoder_|decoder_|text_|vision_)*layers|n_layers?|depth|num_blocks|.*num_hidden_layers|.*_layers",
        2,
    ),
    (
        r"(.*_)?(intermediate|ffn|ff|feedforward|feed_forward|mlp|inner)_?(size|dim|hidden_size)?|d_ff|n_inner|ffn_hidden_size",
        64,
    ),
    (r"head_dim|.*_head_dim|d_kv|dim_head|attention_head_size|kv_channels", 8),
    (
        r"(.*_)?(hidden_size|embed_dim|hidden_dim|embedding_size|projection_dim|projection_size|proj_dim)|d_model|dim|n_embd|width|d_embed",
        HIDDEN,
    ),
    (r"image_size|img_size|crop_size", 32),
    (r"patch_size", 8),
    (r"num_frames|frames_per_clip", 2),
    (r"(n_routed_experts|num_experts|num_local_experts|moe_num_experts)", 4),
    (r"num_experts_per_tok|moe_topk|top_k_experts|moe_k", 2),
    (r"max_position_embeddings|n_positions|max_seq_len|max_target_positions", 64),
    (r"max_source_positions", 32),
    (r"num_mel_bins", 16),
)


class CannotBuild(Exception):
    """No tiny model of a type could be made, and why."""


def model_types() -> tuple[str, ...]:
    """Return every type that has a base model in the transformers that is installed."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return tuple(sorted(MODEL_MAPPING_NAMES))


def tiny_of_type(model_type: str, seed: int = 0) -> PreTrainedModel:
    """Return a tiny random model of a type, in evaluation mode.

    Args:
        model_type: One of `model_types`.
        seed: Of the weights.

    Raises:
        CannotBuild: Its config cannot be cut down, or the model that it makes cannot be built small.
    """
    from transformers import AutoConfig, AutoModel

    failures: list[str] = []
    for strength in (3, 2, 1):
        try:
            config = AutoConfig.for_model(model_type)
            shrink(config, strength)
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModel.from_config(config).parameters())
            if size > _MOST_PARAMETERS:
                failures.append(f"{size:,} parameters")
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoModel.from_config(config)
                with torch.no_grad():
                    for parameter in model.parameters():
                        if parameter.is_floating_point():
                            parameter.add_(torch.randn_like(parameter), alpha=0.05)
            return model.float().eval()
        except Exception as error:  # every config and every model has conditions of its own
            failures.append(f"{type(error).__name__}: {str(error)[:200]}")
    raise CannotBuild("; ".join(failures))


def shrink(config: PretrainedConfig, strength: int = 3) -> None:
    """Cut a config down in place, and those inside it.

    Args:
        config: Of any type.
        strength: 1 cuts depths and vocabularies, 2 lists of depths and widths as well, 3 widths, heads and images too.
    """
    own = dict(vars(config))
    depths = {v for k, v in own.items() if re.fullmatch(_SMALL[3][0], k) and isinstance(v, int)}
    for name, value in own.items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            shrink(value, strength)
            continue
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int):
            small = _small(name, value, strength)
            if small is not None:
                setattr(config, name, small)
        elif isinstance(value, (list, tuple)) and value and strength >= 2:
            _shrink_list(config, name, value, depths)
    if strength >= 3:
        _bring_in_line(config)
    for name, value in list(vars(config).items()):
        if name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= 128:
            setattr(config, name, value % 100 + 20)


def _bring_in_line(config: Any) -> None:
    """Make small what depends on the width of a head, and on the number of patches."""
    own = vars(config)
    width = own.get("qk_rope_head_dim") or own.get("head_dim") or HIDDEN // HEADS
    rope, part = own.get("rope_parameters"), width // 2
    if isinstance(rope, dict) and "rope_theta" in rope:  # where there are sections for time, height and width
        rope["mrope_section"] = [part - 2 * (part // 4), part // 4, part // 4]
    if isinstance(own.get("rotary_dim"), int):
        config.rotary_dim = 4
    if isinstance(own.get("window_size"), int) and isinstance(own.get("depths"), (list, tuple)):
        config.window_size = config.patch_size = 2
    if isinstance(own.get("n_routed_experts"), int) and own.get("num_experts_per_tok") is None:
        config.num_experts_per_tok = 2
    if "attn_layer_indices" in own:
        config.attn_layer_indices = [1]
    if isinstance(own.get("mamba_d_ssm"), int):
        config.mamba_d_ssm, config.mamba_n_heads, config.mamba_d_head = 64, 4, 16
    if "qk_rope_head_dim" in own and own.get("num_key_value_heads") is not None:
        config.num_key_value_heads = HEADS
        config.head_dim = own["qk_rope_head_dim"]


def _small(name: str, value: int, strength: int) -> int | None:
    for pattern, small in _SMALL:
        if re.fullmatch(pattern, name):
            cheap = pattern in (_SMALL[0][0], _SMALL[3][0])
            return min(value, small) if strength >= 3 or cheap else None
    return None


def _shrink_list(config: Any, name: str, value: list | tuple, depths: set[int]) -> None:
    make = type(value)
    if re.search(r"layer_types|layers_block_type|layer_type|block_types|mlp_layer_types", name) or (
        len(value) in depths and not all(isinstance(one, (int, float)) for one in value)
    ):
        kinds = list(dict.fromkeys(map(str, value)))
        picked = [value[0], next((one for one in value if str(one) != kinds[0]), value[-1])]
        setattr(config, name, make(picked))
    elif re.fullmatch(r"(encoder_|decoder_)?depths|num_(block|layer)s(_per_\w+)?", name):
        setattr(config, name, make(1 for _ in value))
    elif re.fullmatch(r"(.*_)?hidden_sizes|embed_dims?|dims|neck_hidden_sizes", name):
        setattr(config, name, make(16 * (i + 1) for i in range(len(value))))
    elif re.fullmatch(r"num_(attention_)?heads", name):
        setattr(config, name, make(2 for _ in value))
