"""One watched forward of the whole model: the calls to its layers and the leaves around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..linears import is_linear
from .replay import is_norm, same
from .stacks import first_tensor


@dataclass
class LayerCall:
    """One call of the model to one of its layers."""

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor | None = None


@dataclass
class Forward:
    """What a forward did, in order.

    Attributes:
        events: Calls to layers and to leaves outside of them, by path.
        fired: Paths of every module inside a layer that ran.
        words: Embeddings that were called with the token ids, and how many events came before.
        rows: B of what the model was given.
    """

    layers: list[LayerCall] = field(default_factory=list)
    events: list[tuple[str, nn.Module, Tensor, Tensor]] = field(default_factory=list)
    fired: set[str] = field(default_factory=set)
    words: list[tuple[int, str]] = field(default_factory=list)
    rows: int = 0


def watch_forward(model: nn.Module, layers: Mapping[str, nn.Module], inputs: dict[str, Any]) -> Forward:
    """Run the model once and write down what its layers and the leaves around them were given.

    Args:
        model: In evaluation mode.
        layers: Every layer module by path.
        inputs: Keyword arguments of the model.
    """
    seen = Forward(rows=next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim()), 0))
    tokens = [value for name, value in inputs.items() if name.endswith("input_ids")]
    words = _embedding_weight(model)
    prefixes = tuple(f"{path}." for path in layers)
    open_calls: list[LayerCall] = []

    def enter(path: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            open_calls.append(LayerCall(path, args, kwargs))
            seen.layers.append(open_calls[-1])

        return hook

    def leave(path: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            call = open_calls.pop()
            call.output = first_tensor(output)
            source = first_tensor((args, kwargs))
            if source is not None and call.output is not None:
                seen.events.append((path, module, source, call.output))

        return hook

    def inside(path: str):
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen.fired.add(path)

        return hook

    def outside(path: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if given is None or not isinstance(output, Tensor):
                return
            # Decoders that make their own token ids are told by the weights that they share with the encoder.
            if isinstance(module, nn.Embedding) and (
                module.weight is words or any(torch.equal(given, ids) for ids in tokens)
            ):
                seen.words.append((len(seen.layers), path))
            seen.events.append((path, module, given, output))

        return hook

    handles = []
    for path, module in model.named_modules():
        if path in layers:
            handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            handles.append(module.register_forward_hook(leave(path), with_kwargs=True))
        elif path.startswith(prefixes):
            handles.append(module.register_forward_hook(inside(path)))
        elif path and (next(module.children(), None) is None or is_linear(module) or is_norm(path, module)):
            handles.append(module.register_forward_hook(outside(path), with_kwargs=True))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def after_stack(seen: Forward, last: LayerCall, head: nn.Module | None) -> tuple[str | None, str | None]:
    """The norm that takes the last layer's output, and the linear of the base model that takes the norm's.

    Args:
        seen: The forward.
        last: The last call to a layer of the stack.
        head: The module that makes logits, which is no part of the stack.
    """
    end = max(number for number, event in enumerate(seen.events) if event[3] is last.output)
    stream, norm = last.output, None
    for path, module, given, output in seen.events[end + 1 :]:
        if not _passes_on(given, stream):
            continue
        if norm is None and is_norm(path, module):
            stream, norm = output, path
        elif is_linear(module) and module is not head:
            return norm, path
    return norm, None


def word_embedding(seen: Forward, stack_start: int, stack_end: int) -> str | None:
    """The embedding of token ids that was called last before the stack's first layer, and after any other stack.

    Args:
        seen: The forward.
        stack_start: Number of the stack's first layer call.
        stack_end: Number of the last layer call before it, 0 for none.
    """
    before = [path for number, path in seen.words if stack_end <= number <= stack_start]
    return before[0] if before else None


def _embedding_weight(model: nn.Module) -> Tensor | None:
    """The weights of the word embedding, where the model has one."""
    try:
        return getattr(model.get_input_embeddings(), "weight", None)  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None


def _passes_on(given: Tensor, stream: Tensor | None) -> bool:
    """Whether a leaf outside the layers reads the stream as a whole."""
    if stream is None or given.shape != stream.shape or not given.is_floating_point():
        return False
    return given is stream or same(given.float(), stream.float())
