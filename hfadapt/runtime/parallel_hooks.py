"""The hooks that make the batch of a ``Parallel`` composition grow, and where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..routing.composition import Node, Parallel, adapter_names
from ..routing.context import current
from ..routing.growth import Reach
from .attachment import deltas_of
from .hook_tables import remove_hooks
from .leaf_hooks import CallCounter, Hook, add_hook
from .parallel_pieces import put_trunk
from .watch import watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .attachment import Attachment

__all__ = ["count_calls", "install", "put_growth", "reaches_of"]


class GrowInput(Hook):
    """Grows the batch at the input of the first layer with a delta, and fits what higher layers are given.

    Args:
        stack: Path of the stack.
        depths: The layers that the module serves, in the order of its calls.
        calls: Path under which they are counted where there are several.
    """

    def __init__(self, stack: str, depths: tuple[int, ...], calls: str) -> None:
        self.stack, self.depths, self.calls = stack, depths, calls

    @property
    def key(self) -> str:
        return self.stack

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        routing = current()
        growth = None if routing is None else routing.state.growth
        if routing is None or growth is None or self.stack not in growth.first:
            return None
        # This hook comes before the counter of calls, so the count is the number of the call that begins.
        layer = self.depths[routing.state.calls.get(self.calls, 0) if len(self.depths) > 1 else 0]
        # Higher layers are handed the masks and tables of the smaller batch by the loop over layers.
        return growth.repeat_call(args, kwargs) if layer >= growth.first[self.stack] else None


class GrowOutput(Hook):
    """Grows the batch at a stack's last hidden state.

    Args:
        stack: Path of the stack.
        layers: How many it has.
        calls: Path under which the calls of its last module are counted.
        last: The number of its last call.
    """

    def __init__(self, stack: str, layers: int, calls: str, last: int) -> None:
        self.stack, self.layers, self.calls, self.last = stack, layers, calls, last

    @property
    def key(self) -> str:
        return self.stack

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        routing = current()
        growth = None if routing is None else routing.state.growth
        if routing is None or growth is None or growth.first.get(self.stack) != self.layers:
            return None
        if self.last > 1 and routing.state.calls.get(self.calls, 0) != self.last:
            return None
        growth.grown = True
        return growth.repeat(output)


def install(model: PreTrainedModel, attachment: Attachment, node: Parallel) -> tuple[Reach, ...]:
    """Put the hooks that grow the batch in front of those of deltas; return where each child has deltas."""
    put_growth(model, attachment)
    return reaches_of(model, attachment, node.children)


def put_growth(model: PreTrainedModel, attachment: Attachment) -> None:
    """Put the hooks that grow the batch in front of those of deltas; they do nothing until a call asks for it."""
    # Before the hooks of an earlier ``Parallel`` make room, which would look like places that are gone.
    lost = () if attachment.watch is None else attachment.watch.lost()
    for stack in attachment.arch.stacks:
        for layer in dict.fromkeys(stack.layer_paths):
            depths = tuple(i for i, path in enumerate(stack.layer_paths) if path == layer)
            if len(depths) > 1:
                count_calls(model, attachment, layer)
            _put_first(model.get_submodule(layer), GrowInput(stack.path, depths, layer), before=True)
        last = stack.layer_paths[-1]
        hook = GrowOutput(stack.path, stack.num_layers, last, stack.layer_paths.count(last))
        _put_first(model.get_submodule(stack.top), hook, before=False)
    put_trunk(model, attachment)
    watch(model, attachment, lost)
    attachment.rereads_input = _rereads_input(model, attachment)


def reaches_of(model: PreTrainedModel, attachment: Attachment, nodes: Sequence[Node]) -> tuple[Reach, ...]:
    """Return where each of some adapters or compositions has deltas, found in one walk over the model."""
    wanted = set[str]().union(*map(adapter_names, nodes))
    counts, mapped = attachment.arch.depths, {stack.path for stack in attachment.arch.stacks}
    layers: dict[str, dict[str, set[int]]] = {name: {} for name in wanted}
    # A copy of the embeddings, say, is below every layer, and so are tables and what is looked up in them.
    below = {name for name in wanted if attachment.adapters[name].modules}
    for _, delta in deltas_of(model):
        site = delta.site
        depth = {"embedding_output": -1, "top": counts.get(site.stack, 0)}.get(site.slot, site.layer)
        here = [name for name in wanted if delta.has(name)]
        # What stands in no mapped stack may be below all of them, as the convolution that makes patches is.
        outside = site.slot in ("convolution", "weights") and site.stack not in mapped
        if outside or site.side == "numbers" or site.slot == "table":
            below.update(here)
        for name in here:
            layers[name].setdefault(site.stack, set()).add(depth)
    found = []
    for node in nodes:
        names, places = {*adapter_names(node)}, dict[str, set[int]]()
        for stack, depths in (one for name in names for one in layers[name].items()):
            places.setdefault(stack, set()).update(depths)
        by_stack = {stack: tuple(sorted(depths)) for stack, depths in places.items()}
        found.append(Reach(by_stack, not names.isdisjoint(below)))
    return tuple(found)


def count_calls(model: PreTrainedModel, attachment: Attachment, layer: str) -> None:
    """Count the calls of a layer module that serves several depths (ALBERT)."""
    add_hook(model.get_submodule(layer), CallCounter(layer))
    if layer not in attachment.call_counters:
        attachment.call_counters = (*attachment.call_counters, layer)


def _rereads_input(model: PreTrainedModel, attachment: Attachment) -> bool:
    """Say whether the model looks at its input again behind its layers, say for the last token of each row.

    Such a model is given all rows from the start, and so is one without a map, whose layers are not known. One that is
    not known here fails with the error of ``check_output``.
    """
    if not attachment.arch.stacks:
        return True
    causal = any(stack.causal for stack in attachment.arch.stacks)
    last_token = type(model).__name__.endswith("ForSequenceClassification") and causal
    return last_token or attachment.arch.rereads_input


def _put_first(module: nn.Module, hook: Hook, before: bool) -> None:
    remove_hooks(module, lambda other: type(other) is type(hook))
    if before:
        module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
    else:
        module.register_forward_hook(hook, prepend=True)
