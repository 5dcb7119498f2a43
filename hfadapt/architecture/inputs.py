"""A tiny valid input for any model: what a probe or a check feeds to one forward pass."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["example_inputs"]

_TOKENS = 6


def _ids(config: Any, length: int) -> Tensor:
    """Token ids that avoid padding and end with the end-of-sequence token, which some heads look for."""
    text = getattr(config, "text_config", config)
    text = config if isinstance(text, dict) else text
    size = int(getattr(text, "vocab_size", 100))
    avoid = {getattr(text, k, None) for k in ("pad_token_id", "eos_token_id", "bos_token_id")}
    usual = [i for i in range(3, size) if i not in avoid][:length] or [0]
    ids = (usual * length)[:length]
    end = getattr(text, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < size:
        ids[-1] = end
    return torch.tensor([ids])


def example_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return keyword arguments for one forward pass with one short row, on the model's device and in its dtype.

    Args:
        model: Any text, vision or speech model of transformers.
    """
    config: Any = model.config
    names = inspect.signature(model.forward).parameters
    inputs: dict[str, Tensor] = {}
    if "pixel_values" in names:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        inputs["pixel_values"] = torch.zeros(1, getattr(vision, "num_channels", 3), height, width)
    if "input_features" in names:
        frames = 2 * int(getattr(config, "max_source_positions", 1500))
        inputs["input_features"] = torch.zeros(1, int(getattr(config, "num_mel_bins", 80)), frames)
    elif "input_values" in names:
        inputs["input_values"] = torch.zeros(1, 4000)
    elif "input_ids" in names:
        inputs["input_ids"] = _ids(config, _TOKENS)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names and not _shifts_by_itself(model):
        inputs["decoder_input_ids"] = _ids(config, _TOKENS - 2)
    if getattr(config, "add_cross_attention", False) and "encoder_hidden_states" in names:
        width = getattr(config, "cross_attention_hidden_size", None) or config.hidden_size
        inputs["encoder_hidden_states"] = torch.zeros(1, _TOKENS, width)
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    device = next(model.parameters()).device
    return {k: v.to(device, floating) if v.is_floating_point() else v.to(device) for k, v in inputs.items()}


def _shifts_by_itself(model: PreTrainedModel) -> bool:
    """Classification heads of encoder-decoders make the decoder's input from the encoder's."""
    return type(model).__name__.endswith(
        ("ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification")
    )
