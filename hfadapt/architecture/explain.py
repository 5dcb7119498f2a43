"""A map in words, for people who want to know what a model is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .linears import is_linear, linear_sizes
from .maps import LayerMap, StackMap
from .resolve import resolve

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LeafRow:
    """One mapped module of a layer: its role, its path, its class and its sizes (None where it has none)."""

    role: str
    path: str
    kind: str
    inputs: int | None
    outputs: int | None
    parameters: int


def explain(model: nn.Module) -> str:
    """A text that says how a model's layers are built and which module plays which part.

    Raises:
        ArchitectureError: The model could not be mapped.
    """
    arch = resolve(model)
    origin = {"table": "a registered map", "probe": "the automatic probe"}.get(arch.source, "a map that was given")
    interface = "through" if arch.attention_interface else "not through"
    lines = [
        f"{type(model).__name__} ({arch.model_type}), mapped by {origin}; attention {interface} AttentionInterface"
    ]
    for stack in arch.stacks:
        layer = stack.layer(next(i for i in range(stack.num_layers) if i not in stack.left_out))
        causal = "causal" if stack.causal else "bidirectional"
        lines += [
            "",
            f"{stack.path}: {stack.num_layers} {stack.kind} layers, {causal}, {_formula(stack)}",
            f"  hidden {stack.hidden_size}, feed-forward {stack.ffn_size if stack.ffn_out else 'none'}, "
            + (f"{stack.num_heads} heads of {stack.head_dim}" if stack.num_heads else "no heads")
            + (f" ({stack.num_kv_heads} for keys and values)" if stack.num_kv_heads != stack.num_heads else ""),
        ]
        if stack.calls_per_module > 1:
            lines.append(f"  each layer module runs {stack.calls_per_module} times; depth is counted by calls")
        lines += [f"  layer {index} is left out: {why}" for index, why in stack.left_out.items()]
        if stack.others:
            lines.append(
                f"  layers {', '.join(map(str, stack.others))} are made otherwise; shown is layer {layer.index}"
            )
        rows = [(row.role, f"{row.path} ({row.kind}{_sizes(row)})") for row in leaves_of(model, layer)]
        rows += [("last hidden state", stack.top)]
        rows += [("word embedding", stack.embedding)] if stack.embedding else []
        width = max(len(role) for role, _ in rows)
        lines += [f"  {role:<{width}}  {path}" for role, path in rows]
    lines += [f"\n{path}: left out ({why})" for path, why in arch.left_out.items()]
    return "\n".join(lines)


def _formula(stack: StackMap) -> str:
    """How the layer adds its sub-layers f to its hidden state h."""
    if stack.style == "sandwich":
        inner = "f(norm(h))" if "pre_ffn" in stack.norms else "f(h)"
        return f"normed sub-layer outputs: h = h + norm({inner})"
    return {
        "post": "post-norm: h = norm(h + f(h))",
        "pre": "pre-norm: h = h + f(norm(h))",
        "parallel": "parallel: h = h + attention(norm(h)) + ffn(norm(h))",
    }[stack.style]


def _sizes(row: LeafRow) -> str:
    return "" if row.inputs is None else f" {row.inputs} -> {row.outputs}"


def leaves_of(model: nn.Module, layer: LayerMap) -> Iterator[LeafRow]:
    """The mapped leaves of a layer, in the order of the map."""
    roles = {**layer.linears, **{f"{role} norm": path for role, path in layer.norms.items()}}
    for name in ("attn_out_dropout", "cross_out_dropout", "ffn_out_dropout"):
        if (path := getattr(layer, name)) is not None:
            roles[name] = path
    for role, path in roles.items():
        module = model.get_submodule(path)
        inputs, outputs = linear_sizes(module) if is_linear(module) else (None, None)
        count = sum(parameter.numel() for parameter in module.parameters())
        yield LeafRow(role, path, type(module).__name__, inputs, outputs, count)
