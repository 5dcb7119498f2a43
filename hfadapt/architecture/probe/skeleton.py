"""The map of a model without weights: probe a shallow twin with weights, and stretch what it shows."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch

from ...errors import ArchitectureError
from ..maps import ArchitectureMap, StackMap, join
from .uniform import differences, linears_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

_DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "n_layers",
    "n_layer",
)
_LAYERS = 2
_WORDS = 512
_ADVICE = "load the model's weights first, or register a map for this model type (docs/map-an-architecture.md)"
_seen: dict[tuple[str, str], ArchitectureMap] = {}


def probe_skeleton(model: PreTrainedModel, probe: Callable[[nn.Module], ArchitectureMap]) -> ArchitectureMap:
    """Map a model on the meta device.

    Args:
        model: The model; its base model is built again with two layers and few words, on the CPU.
        probe: What maps that twin.

    Raises:
        ArchitectureError: The twin cannot be built or mapped, or the model's layers are not all like the twin's.
    """
    base = model.base_model
    prefix = next(name for name, module in model.named_modules() if module is base)
    config = cast("PretrainedConfig", base.config)
    key = (type(base).__qualname__, config.to_json_string())
    if key not in _seen:
        try:
            # loads try a folder where tensors are made on the meta device, and this twin has to be run
            with torch.device("cpu"):
                twin = type(base)(shallow_config(config))
        except Exception as error:  # any config may refuse to be cut short, in any way; the cause is kept and shown
            text = "the model has no weights (meta device), and no shallow twin of it can be built"
            raise ArchitectureError(
                text,
                where=type(base).__name__,
                got=f"{type(error).__name__}: {error}"[:300],
                allowed="a config of which a model with two layers can be built",
                try_=_ADVICE,
            ) from error
        with torch.device("cpu"):
            arch = probe(twin)
        _seen[key] = replace(arch, stacks=tuple(_stretched(stack, twin, base) for stack in arch.stacks))
    return _seen[key].under(prefix)


def shallow_config(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a config with two layers a stack and a small vocabulary; all widths stay."""
    config = copy.deepcopy(config)
    depths = {value for name in _DEPTHS if isinstance(value := getattr(config, name, None), int)}
    for name in _DEPTHS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(_LAYERS, getattr(config, name)))
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) in depths and name.endswith(("types", "layers")):
            setattr(config, name, value[:_LAYERS])
        elif name.endswith("token_id") and isinstance(value, int) and value >= _WORDS:
            setattr(config, name, value % _WORDS)
        elif name.endswith("vocab_size") and isinstance(value, int):
            setattr(config, name, min(_WORDS, value))
        elif hasattr(value, "model_type") and hasattr(value, "to_json_string"):
            setattr(config, name, shallow_config(cast("PretrainedConfig", value)))
    return config


def _stretched(stack: StackMap, twin: nn.Module, base: nn.Module) -> StackMap:
    """The twin's stack with the layers of the model itself, once they are known to be alike."""
    if stack.others or stack.left_out:
        raise ArchitectureError(
            "the layers are not all alike",
            where=stack.path,
            got=f"{len(stack.others)} kinds of other layers, {len(stack.left_out)} layers left out",
            allowed="layers of one kind, where there are no weights",
            try_=_ADVICE,
        )
    if stack.calls_per_module > 1:
        text = "the model shares layers, and how often each one runs cannot be told without weights"
        raise ArchitectureError(
            text,
            where=stack.path,
            got=f"{stack.calls_per_module} calls of each module in a twin of two layers",
            allowed="layers that run once each, where there are no weights",
            try_=_ADVICE,
        )
    layers = tuple(join(stack.path, str(index)) for index, _ in enumerate(base.get_submodule(stack.path).children()))
    linears = linears_of((stack.attention, stack.cross_attention), (*stack.ffn_in, stack.ffn_out))
    mapped = twin.get_submodule(stack.layer_paths[-1])
    missing = differences(mapped, base, layers, linears, stack.norms.values())
    if missing:
        text = "the layers are not all alike"
        raise ArchitectureError(
            text,
            where=stack.path,
            got=f"missing {'; '.join(missing)}",
            allowed=f"layers with all that {stack.layer_paths[-1]} of a shallow twin has",
            try_=_ADVICE,
        )
    return replace(stack, layer_paths=layers)
