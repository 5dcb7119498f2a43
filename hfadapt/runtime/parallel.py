"""Parallel composition: one input through several adapters, with the trunk below the first delta run once.

The batch grows where the first delta of any child is: at the input of that layer every tensor that has the batch as its
first axis (hidden states, masks, position embeddings, encoder states) is repeated once a child, children outermost, and
everything above works on the larger batch. Task functions on top grow it behind the last layer only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import RoutingError
from ..routing.forward_pass import Pass, StackInputs
from ..routing.growth import Growth, Reach, copies
from ..routing.routing import Routing
from ..routing.steps import plan
from ..routing.task_ids import Together
from .call import Call

if TYPE_CHECKING:
    from ..routing.choice import Choice
    from .attachment import Attachment

__all__ = ["check_output", "first_layers", "fit_call", "parallel_routing", "starts_at_root", "together_routing"]


def parallel_routing(
    attachment: Attachment,
    choice: Choice,
    found: tuple[int, Any] | None,
    call: Call,
    prompts: int,
) -> Routing:
    """Build the routing of a call whose rows go through every child of a ``Parallel``.

    Args:
        attachment: The adapters of the model.
        choice: The composition.
        found: Batch size and device of the call's inputs.
        call: The call.
        prompts: How many rows there were before ``generate`` repeated them; 0 outside of it.

    Raises:
        RoutingError: the call goes on from a cache whose rows are not those of every child.
    """
    node = choice.parallel
    assert node is not None
    size, device = found if found is not None else (1, None)
    children = node.children
    cache = call.cache
    cached = _rows_of_cache(cache, len(children)) if cache is not None and not prompts else 0
    before = prompts or cached // len(children) or size
    ids = torch.arange(len(children), device=device).repeat_interleave(before)
    listed = tuple(i for i in range(len(children)) for _ in range(before))
    labels, steps = tuple(map(str, children)), plan(children)
    own: dict[str, Any] = {"owner": attachment.token, "drop": attachment.drop}
    if prompts:
        return Routing(labels, steps, ids, 0, len(listed), StackInputs(), Pass(), listed, **own).for_batch(size)
    # The cache of steps to come holds every layer's rows, so that all of them are there from the start.
    at_root = starts_at_root(attachment, choice.reaches) or cache is not None or bool(call.get("use_cache"))
    first = {} if at_root else first_layers(attachment, choice.reaches)
    growth = Growth(before, len(children), first, at_root, trunk=choice.trunk)
    return Routing(labels, steps, ids, 0, growth.rows, StackInputs(), Pass(growth=growth), listed, **own)


def together_routing(attachment: Attachment, rows: Together, found: tuple[int, Any] | None) -> Routing:
    """Build the routing of a call whose one input goes through what each of several rows goes through.

    Args:
        attachment: The adapters of the model.
        rows: The routable name of each row ``[B]``, as a number.
        found: Batch size, which is 1, and device of the call's inputs.
    """
    assert rows.ids is not None and rows.listed is not None and found is not None
    at_root = starts_at_root(attachment, rows.reaches)
    first = {} if at_root else first_layers(attachment, rows.reaches)
    growth = Growth(found[0], len(rows.listed), first, at_root, trunk=rows.trunk)
    names, steps, state = attachment.routable, attachment.steps, Pass(growth=growth)
    own: dict[str, Any] = {"owner": attachment.token, "drop": attachment.drop}
    if len(set(rows.listed)) == 1:  # as a row alone, which spares the slots all sorting of rows
        return Routing(names, steps, None, rows.listed[0], growth.rows, StackInputs(), state, **own)
    return Routing(names, steps, rows.ids, 0, growth.rows, StackInputs(), state, rows.listed, **own)


def _rows_of_cache(cache: Any, children: int) -> int:
    """Return how many rows a key-value cache holds, 0 for an empty one.

    Raises:
        RoutingError: its layers differ in that, or it is no multiple of ``children``.
    """
    if int(cache.get_seq_length()) == 0:
        return 0
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", ())
    rows = sorted({layer.keys.shape[0] for layer in layers if isinstance(getattr(layer, "keys", None), Tensor)})
    if len(rows) != 1 or rows[0] % children:
        raise RoutingError(
            "Parallel cannot go on from this key-value cache, which was not filled for every child in every layer",
            where="past_key_values",
            got=f"{' and '.join(map(str, rows)) or 'no'} rows for {children} children",
            allowed=f"a multiple of {children} rows, the same in every layer",
            try_="give the first call use_cache=True or an empty DynamicCache(); or use generate",
        )
    return rows[0]


def starts_at_root(attachment: Attachment, reaches: Sequence[Reach]) -> bool:
    """Say whether the rows differ before the first layer, or the model looks at its input again behind the last."""
    return attachment.rereads_input or any(reach.below for reach in reaches)


def first_layers(attachment: Attachment, reaches: Sequence[Reach]) -> dict[str, int]:
    """Return, by stack, the layer at whose input the batch grows."""
    stacks, drop = attachment.arch.stacks, attachment.drop
    decoders = [s.path for s in stacks if s.kind == "decoder"]
    first: dict[str, int] = {}
    for stack in stacks:
        lowest = drop.get(stack.path, drop.get("", 0))
        found = {layer for reach in reaches for layer in reach.layers.get(stack.path, ())}
        layers = [layer for layer in found if layer >= lowest or layer < 0]
        if layers:
            first[stack.path] = min(layers)
        elif stack.path in decoders or not decoders:  # the result has a row for each child, with or without deltas
            first[stack.path] = stack.num_layers
    return first


def fit_call(routing: Routing, path: str, decoder: bool, call: Call) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of the model, its base or one of its stacks, repeated where that has to happen early.

    A decoder works on the larger batch from its start when its encoder's states are larger, or its own input is. Labels
    are repeated for the model's head.
    """
    growth = routing.state.growth
    assert growth is not None
    labels = None if path else call.get("labels")
    if isinstance(labels, Tensor) and labels.shape[:1] == (growth.size,):
        call = call.replacing("labels", copies(labels, growth.children))
    args, kwargs = call.args, call.kwargs
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
            "this model cannot run Parallel: behind its layers it uses the input's rows once more",
            where=f"output of the model, {type(output).__name__}",
            got=f"{main.shape[0]} rows of output for {growth.size} inputs and {growth.children} adapters",
            allowed=f"{growth.rows} rows",
            try_="repeat the inputs and give one name a row in task_ids",
        )
