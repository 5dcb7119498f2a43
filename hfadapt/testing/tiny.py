"""Tiny models of every mapped family, with random weights, and inputs for them; nothing is downloaded.

They have two layers, a hidden size of 32, four heads and a vocabulary of 99, so that a forward takes milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

VOCABULARY = 99
HIDDEN = 32
HEADS = 4
FFN = 64
LAYERS = 2
POSITIONS = 64
FRAMES = 40

_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "max_position_embeddings": POSITIONS,
}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": FFN,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_CLIP_TEXT = {**_BERT, "projection_dim": HIDDEN, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_IMAGE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "image_size": 16,
    "patch_size": 4,
}

_SETTINGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_dim": FFN,
        "max_position_embeddings": POSITIONS,
    },
    "electra": {**_BERT, "embedding_size": 16},
    "albert": {**_BERT, "embedding_size": 16},
    "deberta-v2": {
        **_BERT,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
        "max_relative_positions": 16,
    },
    "mpnet": _BERT,
    "modernbert": {
        **_BERT,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": FFN,
        "n_positions": POSITIONS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
    "mistral": _LLAMA,
    "gemma": {**_LLAMA, "head_dim": 8},
    "gemma2": {**_LLAMA, "head_dim": 8},
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "ffn_dim": FFN,
        "max_position_embeddings": POSITIONS,
        "word_embed_proj_dim": HIDDEN,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "t5": {
        "vocab_size": VOCABULARY,
        "d_model": HIDDEN,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "d_kv": 8,
        "d_ff": FFN,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    "bart": {**_BART, "max_position_embeddings": POSITIONS},
    "mbart": {**_BART, "max_position_embeddings": POSITIONS},
    "vit": _IMAGE,
    "whisper": {
        **_BART,
        "num_mel_bins": 8,
        "max_source_positions": FRAMES // 2,
        "max_target_positions": 32,
        "decoder_start_token_id": 3,
    },
    "clip_text_model": _CLIP_TEXT,
    "clip_vision_model": {**_IMAGE, "projection_dim": HIDDEN},
    "clip": {
        "text_config": _CLIP_TEXT,
        "vision_config": {**_IMAGE, "projection_dim": HIDDEN},
        "projection_dim": HIDDEN,
    },
}

TINY_TYPES = tuple(name for name in _SETTINGS if name not in ("clip", "clip_vision_model"))
"""The model types that methods are tested on."""

ALL_TINY_TYPES = tuple(_SETTINGS)
"""Those and the composed or derived ones."""

_AUTO_CLASSES = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "speech-seq2seq": "AutoModelForSpeechSeq2Seq",
}
# Decoder-only variants of encoders and of encoder-decoders exist in transformers, but leave cross attention idle.
_CAUSAL_TYPES = ("gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "opt")


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """The config of a tiny model.

    Args:
        model_type: One of `ALL_TINY_TYPES`.
        changes: Settings that differ from the tiny ones, under the config's own names.
    """
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **{**_SETTINGS[model_type], **changes})


def tiny_heads(model_type: str) -> tuple[str, ...]:
    """Heads that transformers has for this type: "sequence-classification", "causal-lm", "seq2seq-lm" and so on."""
    import transformers

    config_class = type(tiny_config(model_type))
    heads = []
    for head, auto in _AUTO_CLASSES.items():
        if head == "causal-lm" and model_type not in _CAUSAL_TYPES:
            continue
        if config_class in getattr(transformers, auto)._model_mapping:
            heads.append(head)
    return tuple(heads)


def tiny_model(
    model_type: str,
    head: str | None = None,
    *,
    seed: int = 0,
    attn_implementation: str | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """A tiny model in evaluation mode whose every parameter is random, so that no two places look alike.

    Fresh models have all norms at one and all biases at zero, which hides mistakes; here each parameter is moved.

    Args:
        model_type: One of `ALL_TINY_TYPES`.
        head: One of `tiny_heads(model_type)`, or None for the base model.
        seed: Of the weights.
        attn_implementation: "eager", "sdpa" or None for the model's default.
        changes: Settings of the config.
    """
    import transformers

    config = tiny_config(model_type, **changes)
    auto = getattr(transformers, _AUTO_CLASSES[head] if head else "AutoModel")
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def tiny_inputs(
    model_type: str,
    head: str | None = None,
    *,
    batch: int = 3,
    length: int = 7,
    padding: str | None = None,
    seed: int = 1,
) -> dict[str, torch.Tensor]:
    """Keyword arguments for a tiny model's forward.

    Args:
        model_type: One of `ALL_TINY_TYPES`.
        head: The head the model was made with; encoder-decoders with a classification head make their own
            decoder input.
        batch: Rows B.
        length: Tokens T.
        padding: None for no attention mask; "right" or "left" pads every row but the first.
        seed: Of the values.
    """
    generator = torch.Generator().manual_seed(seed)
    config = tiny_config(model_type)

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(4, VOCABULARY, (batch, count), generator=generator)

    inputs: dict[str, torch.Tensor] = {}
    if model_type in ("vit", "clip", "clip_vision_model"):
        inputs["pixel_values"] = torch.randn(batch, 3, 16, 16, generator=generator)
    if model_type == "whisper":
        inputs["input_features"] = torch.randn(batch, 8, FRAMES, generator=generator)
    elif model_type not in ("vit", "clip_vision_model"):
        inputs["input_ids"] = tokens(length)
        # CLIPModel hands a text mask to its vision tower as well, which refuses it, so that pair goes without.
        _end_and_pad(inputs, config, None if model_type == "clip" else padding)
    if model_type in ("t5", "bart", "mbart", "whisper") and head in (None, "seq2seq-lm", "speech-seq2seq"):
        inputs["decoder_input_ids"] = tokens(max(1, length - 2))
    return inputs


def _end_and_pad(inputs: dict[str, torch.Tensor], config: PretrainedConfig, padding: str | None) -> None:
    """Put the end token last where the family looks for it, and pad all rows but the first by two tokens or fewer."""
    ids = inputs["input_ids"]
    batch, length = ids.shape
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(1, batch) if padding else ():
        count = min(1 + row % 2, length - 1)
        mask[row, :count] = 0
        if padding == "right":
            mask[row] = mask[row].flip(0)
    text = getattr(config, "text_config", None) or config
    if config.model_type in ("t5", "bart", "mbart", "clip", "clip_text_model"):
        last = length - 1 - mask.flip(1).argmax(1)
        ids[torch.arange(batch), last] = text.eos_token_id
    if padding:
        pad = text.pad_token_id
        ids.masked_fill_(mask == 0, 0 if pad is None else pad)
        inputs["attention_mask"] = mask
