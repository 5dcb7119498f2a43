"""The hook objects that connect slots to a stock model.

They are instances of module-level classes without state, so that they survive ``deepcopy`` and pickle and follow the
copy: everything they need they find as the child ``hfadapt`` of the module that calls them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..routing.context import current
from .hook_tables import remove_hooks
from .slot import run_slot

__all__ = [
    "CallCounter",
    "InputHook",
    "OutputHook",
    "TapInput",
    "TapOutput",
    "add_hook",
    "remove_our_hooks",
]


class Hook:
    """Base of hfadapt's hooks, which are found by this class."""

    # It runs before the module, and is told arguments that were given by name.
    before = False
    by_name = False

    def __call__(self, module: nn.Module, *call: Any) -> Any:
        """Do the hook's work; ``call`` is what torch hands to a hook of that kind."""
        raise NotImplementedError


class OutputHook(Hook):
    """Runs the deltas at a module's output."""

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        routing = current()
        if routing is None:
            return None
        leaf_input = args[0] if args else None
        if isinstance(output, tuple):
            return (run_slot(module, "output", output[0], leaf_input, routing), *output[1:])
        return run_slot(module, "output", output, leaf_input, routing)


class InputHook(Hook):
    """Runs the deltas at a module's input."""

    before = by_name = True

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        routing = current()
        if routing is None:
            return None
        if args:
            return (run_slot(module, "input", args[0], None, routing), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: run_slot(module, "input", kwargs[first], None, routing)}


class TapInput(Hook):
    """Keeps a module's input for slots further on in the same layer."""

    before = by_name = True

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        routing = current()
        if routing is not None:
            routing.state.taps[self.key] = args[0] if args else next(iter(kwargs.values()))


class TapOutput(Hook):
    """Keeps a module's output for slots further on in the same layer."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        routing = current()
        if routing is not None:
            routing.state.taps[self.key] = output[0] if isinstance(output, tuple) else output


class CallCounter(Hook):
    """Counts the calls of a layer module that serves several depths (ALBERT)."""

    before = True

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, module: nn.Module, args: tuple) -> None:
        routing = current()
        if routing is not None:
            calls = routing.state.calls
            calls[self.key] = calls.get(self.key, 0) + 1


def add_hook(module: nn.Module, hook: Hook) -> None:
    """Register ``hook`` on ``module`` unless an equal one is there.

    Hooks go first in line: transformers records hidden states with hooks of its own, and one that runs before ours
    would record the unchanged tensor.
    """
    table = module._forward_pre_hooks if hook.before else module._forward_hooks
    for other in table.values():
        if type(other) is type(hook) and getattr(other, "key", None) == getattr(hook, "key", None):
            return
    if hook.before:
        # A tap must see what the deltas at the same input made, so deltas come before taps.
        prepend = not isinstance(hook, TapInput)
        module.register_forward_pre_hook(hook, prepend=prepend, with_kwargs=hook.by_name)
    else:
        module.register_forward_hook(hook, prepend=True, with_kwargs=hook.by_name)


def remove_our_hooks(module: nn.Module) -> None:
    """Remove every hook of hfadapt from ``module``, also from a copy that has no removal handles."""
    remove_hooks(module, lambda hook: isinstance(hook, Hook))


# Arguments that hold the rows of a call. Others may come first and be the same for all rows (position_ids [1, T]).
INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values", "decoder_input_ids")


def tensor_batch_size(args: tuple, kwargs: dict[str, Any]) -> tuple[int, Any] | None:
    """Return the size of the first axis, and the device, of what a model is given to work on."""
    for value in (*args, *[kwargs[name] for name in INPUTS if name in kwargs], *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() > 0:
            return value.shape[0], value.device
    return None
