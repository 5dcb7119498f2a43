"""Inputs for one forward of a model that nothing is known of but its config."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from ...errors import ArchitectureError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

BATCH = 2
# Different lengths, so that encoder states can never be taken for the decoder's own.
TOKENS = 7
DECODER_TOKENS = 5
SAMPLES = 8000


def example_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """Random text, image or sound of the shape that the config asks for, two rows of it.

    Raises:
        ArchitectureError: The model takes an input of another kind.
    """
    config, accepted = model.config, set(inspect.signature(model.forward).parameters)
    device = next(model.parameters()).device
    main = getattr(model, "main_input_name", "input_ids")
    inputs: dict[str, Any] = {}
    if "input_ids" in accepted and (main == "input_ids" or hasattr(config, "text_config")):
        inputs["input_ids"] = _tokens(config, TOKENS)
    if "pixel_values" in accepted and (main == "pixel_values" or hasattr(config, "vision_config")):
        inputs["pixel_values"] = _image(config)
    if main == "input_features":
        frames = 2 * config.max_source_positions if hasattr(config, "max_source_positions") else 64
        bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", 80)
        inputs["input_features"] = torch.randn(BATCH, bins, frames)
    if main == "input_values":
        inputs["input_values"] = torch.randn(BATCH, SAMPLES)
    if "decoder_input_ids" in accepted and getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _tokens(config, DECODER_TOKENS)
    if not inputs:
        raise ArchitectureError(
            "no example input can be made for the model",
            where=type(model).__name__,
            got=f"main input {main!r}",
            allowed="input_ids, pixel_values, input_features, input_values",
            try_="hfadapt.architecture.probe(model, inputs={...}) with inputs of your own",
        )
    inputs = {name: value.to(device) for name, value in inputs.items()}
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs


def _tokens(config: PretrainedConfig, count: int) -> torch.Tensor:
    """Token ids [B, T] without any that the config gives a special meaning."""
    text = getattr(config, "text_config", None) or config
    special = {getattr(text, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id")}
    size = getattr(text, "vocab_size", 100)
    plain = [token for token in range(max(0, size - 200), size) if token not in special]
    picks = torch.randint(0, len(plain), (BATCH, count))
    return torch.tensor(plain)[picks]


def _image(config: PretrainedConfig) -> torch.Tensor:
    """An image [B, channels, height, width]."""
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", 224)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return torch.randn(BATCH, getattr(vision, "num_channels", 3), height, width)
