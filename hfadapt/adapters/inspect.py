"""What a model is made of and which methods fit it: the data of ``hfadapt inspect``.

No weights are needed: the model is built on the meta device, where a parameter has a shape and no values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..architecture import ArchitectureMap, LayerMap, StackMap, resolve
from ..architecture.explain import LeafRow, explain, leaves_of
from ..errors import ArchitectureError, HFAdaptError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "LeafRow",
    "MethodFit",
    "ModelReport",
    "SlotRow",
    "StackReport",
    "describe",
    "explain",
    "method_fits",
    "skeleton",
]


@dataclass(frozen=True)
class SlotRow:
    """One slot of a layer: the module at which a tensor is changed, its width, and the module whose input is read."""

    slot: str
    leaf: str
    side: str
    width: int
    reads: str


@dataclass(frozen=True)
class StackReport:
    """One stack: its sizes, and the modules and slots of one of its layers."""

    path: str
    kind: str
    style: str
    causal: bool
    layers: int
    calls_per_module: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    layer: int
    leaves: tuple[LeafRow, ...]
    slots: tuple[SlotRow, ...]


@dataclass(frozen=True)
class MethodFit:
    """Whether a method with its default options fits: its parameters for one adapter, or why not."""

    method: str
    parameters: int | None
    share: float | None
    why_not: str | None


@dataclass(frozen=True)
class ModelReport:
    """Everything that ``hfadapt inspect`` shows.

    Attributes:
        source: "table" or "probe"; "" where the model could not be mapped.
        refusal: Why it could not, or None.
        linears: Last parts of the names of the linears in the layers: what LoRA's ``target_modules`` may name.
    """

    model_class: str
    model_type: str
    parameters: int
    source: str
    attention_interface: bool
    stacks: tuple[StackReport, ...]
    linears: tuple[str, ...]
    methods: tuple[MethodFit, ...]
    refusal: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return asdict(self)


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The base model of a config on the meta device: all modules, no memory."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(config)


def describe(model: PreTrainedModel, *, layer: int = 0, methods: bool = True) -> ModelReport:
    """Collect what a model is made of.

    Args:
        model: Any model, also one on the meta device (`skeleton`). Methods are tried on it and taken off again.
        layer: The layer whose modules and slots are listed; the last one where a stack has fewer.
        methods: Try every registered method.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shown = {"model_class": type(model).__name__, "model_type": model.config.model_type, "parameters": parameters}
    try:
        arch = resolve(model)
    except ArchitectureError as error:
        return ModelReport(**shown, source="", attention_interface=False, stacks=(), linears=(), methods=(),
                           refusal=str(error))  # fmt: skip
    return ModelReport(
        **shown,
        source=arch.source,
        attention_interface=arch.attention_interface,
        stacks=tuple(_stack(model, arch, stack, layer) for stack in arch.stacks),
        linears=tuple(sorted({name.rpartition(".")[2] for name in arch.linears(model)})),
        methods=tuple(method_fits(model)) if methods else (),
    )


def method_fits(model: PreTrainedModel) -> Iterator[MethodFit]:
    """Try every registered method with its default options, each attached and taken off again."""
    from .. import plugins
    from .attach import attach

    base = sum(parameter.numel() for parameter in model.parameters())
    for name in plugins.methods():
        try:
            handle = attach(model, name, name="inspected", verify=False)
        except HFAdaptError as error:
            yield MethodFit(name, None, None, str(error))
            continue
        count = handle.num_parameters()
        handle.detach()
        yield MethodFit(name, count, count / base, None)


def _stack(model: nn.Module, arch: ArchitectureMap, stack: StackMap, index: int) -> StackReport:
    layer = stack.layer(min(index, stack.num_layers - 1))
    return StackReport(
        path=stack.path,
        kind=stack.kind,
        style=stack.style,
        causal=stack.causal,
        layers=stack.num_layers,
        calls_per_module=stack.calls_per_module,
        hidden_size=stack.hidden_size,
        heads=stack.num_heads,
        kv_heads=stack.num_kv_heads,
        head_dim=stack.head_dim,
        ffn_size=stack.ffn_size,
        layer=layer.index,
        leaves=tuple(leaves_of(model, layer)),
        slots=tuple(_slots(arch, layer)),
    )


def _slots(arch: ArchitectureMap, layer: LayerMap) -> Iterator[SlotRow]:
    from ..method import sites

    attention, cross, ffn = (layer.has(part) for part in ("attention", "cross", "ffn"))
    heads = attention and layer.attention.width >= 0
    found = [
        *([sites.attention_core(layer)] if arch.attention_interface and layer.stack.num_heads else []),
        *([sites.attention_output(layer)] if attention else []),
        *([sites.attention_heads(layer)] if heads else []),
        *([sites.cross_output(layer)] if cross else []),
        *([sites.ffn_output(layer), sites.ffn_output(layer, sites.ffn_input(layer))] if ffn else []),
        *([] if layer.stack.ffn_is_block or not ffn else [sites.ffn_hidden(layer)]),
        sites.layer_sum(layer),
        sites.layer_output(layer),
    ]
    for site in found:
        reads = site.source.leaf if site.source is not None else site.leaf
        yield SlotRow(site.slot, site.leaf, site.side, site.width, reads)
