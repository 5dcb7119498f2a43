"""The hooks that make the batch of a ``Parallel`` composition grow, and where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .composition import adapter_names
from .hooks import Hook
from .routing import current
from .state import deltas_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .state import Attachment

__all__ = ["install"]


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
