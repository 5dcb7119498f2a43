"""Parallel composition: one input through several adapters, with the trunk below the first delta run once.

The batch grows where the first delta of any child is: at the input of that layer every tensor that has the batch as its
first axis (hidden states, masks, position embeddings, encoder states) is repeated once a child, children outermost, and
everything above works on the larger batch. Task functions on top grow it behind the last layer only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .composition import adapter_names
from .errors import RoutingError, problem
from .hooks import Hook
from .routing import Routing, current, plan
from .state import deltas_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .state import Attachment

__all__ = ["Growth", "check_output", "fit_call", "install", "parallel_routing"]

# Tables that are the same for all rows, whatever the size of their first axis.
_NOT_BATCHED = ("rel_embeddings", "relative_pos", "cache_position", "past_key_values", "past_key_value")


@dataclass
class Growth:
    """How the batch of one forward pass grows; all routings of the pass share it.

    Args:
        size: Rows before.
        children: How many times the rows are repeated.
        first: By stack, the layer at whose input they are; the number of layers stands for the last layer's output.
        at_root: Repeat the model's own arguments instead: behind its layers the model looks at its input again.
        grown: Whether it has happened in any stack.
        repeated: What was repeated, by identity: every layer is given the same masks.
    """

    size: int
    children: int
    first: Mapping[str, int]
    at_root: bool = False
    grown: bool = False
    repeated: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows after."""
        return self.size * self.children

    def repeat(self, value: Any) -> Any:
        """Repeat a tensor ``[B, ...]``, or those in a tuple, list or map; anything else is returned as it is."""
        if isinstance(value, Tensor):
            if value.dim() < 2 or value.shape[0] != self.size:
                return value
            known = self.repeated.get(id(value))
            if known is None or known[0] is not value:
                known = self.repeated[id(value)] = (value, value.repeat(self.children, *(1,) * (value.dim() - 1)))
            return known[1]
        if type(value) in (tuple, list):
            return type(value)(self.repeat(one) for one in value)
        return {k: self.repeat(v) for k, v in value.items()} if type(value) is dict else value

    def repeat_call(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Repeat the arguments of a module."""
        self.grown = True
        return self.repeat(args), {k: v if k in _NOT_BATCHED else self.repeat(v) for k, v in kwargs.items()}


class GrowInput(Hook):
    """Grows the batch at the input of the first layer with a delta, and fits what higher layers are given.

    Args:
        stack: Path of the stack.
        layer: Index of the layer; of a module that serves several layers the first.
        calls: Path under which the calls of such a module are counted, else "".
    """

    def __init__(self, stack: str, layer: int, calls: str) -> None:
        self.stack, self.layer, self.calls = stack, layer, calls

    @property
    def key(self) -> str:
        return self.stack

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        routing = current()
        growth = None if routing is None else routing.growth
        if routing is None or growth is None or self.stack not in growth.first:
            return None
        # This hook comes before the counter of calls, so the count is the number of the call that begins.
        layer = routing.calls.get(self.calls, 0) if self.calls else self.layer
        # Higher layers are handed the masks and tables of the smaller batch by the loop over layers.
        return growth.repeat_call(args, kwargs) if layer >= growth.first[self.stack] else None


class GrowOutput(Hook):
    """Grows the batch at a stack's last hidden state."""

    def __init__(self, stack: str, layers: int, calls: str) -> None:
        self.stack, self.layers, self.calls = stack, layers, calls

    @property
    def key(self) -> str:
        return self.stack

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        routing = current()
        growth = None if routing is None else routing.growth
        if routing is None or growth is None or growth.first.get(self.stack) != self.layers:
            return None
        if self.calls and routing.calls.get(self.calls, 0) != self.layers:
            return None
        growth.grown = True
        return growth.repeat(output)


def install(model: PreTrainedModel, attachment: Attachment) -> None:
    """Note where the composition's deltas are, and put the hooks that grow the batch in front of theirs."""
    assert attachment.parallel is not None
    layers: dict[str, set[int]] = {}
    counts = {stack.path: stack.num_layers for stack in attachment.arch.stacks}
    for name in dict.fromkeys(adapter_names(attachment.parallel)):
        for _, delta in deltas_of(model, name):
            site = delta.site
            depth = {"embedding_output": -1, "top": counts[site.stack]}.get(site.slot, site.layer)
            layers.setdefault(site.stack, set()).add(depth)
    attachment.parallel_layers = {stack: tuple(sorted(found)) for stack, found in layers.items()}
    for stack in attachment.arch.stacks:
        shared = stack.calls_per_module > 1
        for layer in dict.fromkeys(stack.layer_paths):
            index = stack.layer_paths.index(layer)
            hook = GrowInput(stack.path, index, layer if shared else "")
            _put_first(model.get_submodule(layer), hook, before=True)
        calls = stack.layer_paths[-1] if shared else ""
        _put_first(model.get_submodule(stack.top), GrowOutput(stack.path, stack.num_layers, calls), before=False)
    attachment.rereads_input = _rereads_input(model, attachment)


def _rereads_input(model: PreTrainedModel, attachment: Attachment) -> bool:
    """Say whether the model looks at its input again behind its layers, say for the last token of each row.

    Such a model is given all rows from the start. One that is not known here fails with the error of ``check_output``.
    """
    causal = any(stack.causal for stack in attachment.arch.stacks)
    last_token = type(model).__name__.endswith("ForSequenceClassification") and causal
    return last_token or attachment.arch.model_type in ("clip", "clip_text_model")


def _put_first(module: nn.Module, hook: Hook, before: bool) -> None:
    table = module._forward_pre_hooks if before else module._forward_hooks
    for key in [k for k, other in table.items() if type(other) is type(hook)]:
        del table[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    if before:
        module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
    else:
        module.register_forward_hook(hook, prepend=True)


def parallel_routing(attachment: Attachment, found: tuple[int, Any] | None, make: dict[str, Any]) -> Routing:
    """Build the routing of a call whose rows go through every child of ``attachment.parallel``."""
    node = attachment.parallel
    assert node is not None
    size, device = found if found is not None else (1, None)
    children = node.children
    at_root = attachment.rereads_input
    growth = Growth(size, len(children), {} if at_root else _first_layers(attachment), at_root)
    ids = torch.arange(len(children), device=device).repeat_interleave(size)
    listed = tuple(i for i in range(len(children)) for _ in range(size))
    labels = tuple(map(str, children))
    return Routing(labels, plan(children), ids, 0, growth.rows, id_list=listed, growth=growth, **make)


def _first_layers(attachment: Attachment) -> dict[str, int]:
    stacks, drop = attachment.arch.stacks, attachment.drop
    decoders = [s.path for s in stacks if s.kind == "decoder"]
    first: dict[str, int] = {}
    for stack in stacks:
        lowest = drop.get(stack.path, drop.get("", 0))
        layers = [layer for layer in attachment.parallel_layers.get(stack.path, ()) if layer >= lowest or layer < 0]
        if layers:
            first[stack.path] = min(layers)
        elif stack.path in decoders or not decoders:  # the result has a row for each child, with or without deltas
            first[stack.path] = stack.num_layers
    return first


def fit_call(routing: Routing, path: str, decoder: bool, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """Return the arguments of the model, its base or one of its stacks, repeated where that has to happen early.

    A decoder works on the larger batch from its start when its encoder's states are larger, or its own input is. Labels
    are repeated for the model's head.

    Raises:
        RoutingError: the call is a decoding step.
    """
    growth = routing.growth
    assert growth is not None
    cache = kwargs.get("past_key_values")
    # A cache that comes from outside (``generate`` gives an empty one first) is for steps to come.
    if cache is not None and (not path or getattr(cache, "get_seq_length", lambda: 1)() > 0):
        raise refuse_cache()
    if not path and isinstance(kwargs.get("labels"), Tensor) and kwargs["labels"].shape[:1] == (growth.size,):
        labels = kwargs["labels"]
        kwargs = {**kwargs, "labels": labels.repeat(growth.children, *(1,) * (labels.dim() - 1))}
    if growth.at_root and not growth.grown:
        return growth.repeat_call(args, kwargs)
    if decoder:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() > 1]
        if growth.grown or any(t.shape[0] == growth.rows for t in tensors):
            return growth.repeat_call(args, kwargs)
    return args, kwargs


def check_output(growth: Growth, output: Any) -> None:
    """Raise unless the model returned a row for each child and input.

    Raises:
        RoutingError: the model looked at its input again behind the layers (say, for the last token of each row).
    """
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else (output,)
    main = next((v for v in values if isinstance(v, Tensor) and v.dim() > 1), None)
    if main is not None and main.shape[0] != growth.rows:
        raise RoutingError(
            problem(
                "this model cannot run Parallel: behind its layers it uses the input's rows once more",
                got=f"{main.shape[0]} rows of output for {growth.size} inputs and {growth.children} adapters",
                allowed=f"{growth.rows} rows",
                try_="repeat the inputs and give one name a row in task_ids",
            )
        )


def refuse_cache() -> RoutingError:
    """Return the error of a decoding step under Parallel."""
    return RoutingError(
        problem(
            "Parallel cannot decode step by step: its cache would hold rows of two batch sizes",
            got="past_key_values",
            allowed="one forward pass over the whole sequence",
            try_="repeat the inputs and give one name a row: generate(..., task_ids=[...]), or activate(model, [...])",
        )
    )
