"""Autograd of opaque ops: what ``torch.library.register_autograd`` registers, cheaper to call.

torch walks the arguments of every call with its general tree functions, several times where there are lists of tensors;
with an entry for each task that takes longer than a small op. Here the schema says once where tensors and lists stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .direct import unobserved

__all__ = ["autograd_kernel"]


class _Layout:
    """Where the tensors stand among the arguments, or the results, of a schema; autograd sees nothing else."""

    def __init__(self, entries: Sequence[Any]) -> None:
        kinds = [str(entry.type) for entry in entries]
        self.size = len(kinds)
        self.places = [(i, k == "List[Tensor]") for i, k in enumerate(kinds) if k.endswith(("Tensor", "Tensor]"))]
        self.has_lists = any(is_list for _, is_list in self.places)

    def flatten(self, values: Sequence[Any]) -> list[Any]:
        """The tensors of ``values``, lists laid out."""
        flat: list[Any] = []
        for i, is_list in self.places:
            if is_list:
                flat.extend(values[i])
            else:
                flat.append(values[i])
        return flat

    def lengths(self, values: Sequence[Any]) -> list[int]:
        """The lengths of the lists in ``values``."""
        return [len(values[i]) for i, is_list in self.places if is_list]

    def restore(self, flat: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
        """`flatten` undone; ``False`` where there is no tensor."""
        values: list[Any] = [False] * self.size
        rest, at = iter(lengths), 0
        for i, is_list in self.places:
            count = next(rest) if is_list else 1
            values[i] = list(flat[at : at + count]) if is_list else flat[at]
            at += count
        return values


@dataclass
class _Call:
    """One call of an op; ``result_lengths`` is known when it has run."""

    keys: Any
    arguments: tuple[Any, ...]
    result_lengths: list[int] = field(default_factory=list)


def autograd_kernel(
    op: Any,
    inner: Callable[..., Any],
    setup_context: Callable[..., None] | None,
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """The kernel of ``op`` for the dispatch key ``Autograd``, to be registered ``with_keyset``.

    Args:
        op: Overload whose schema has no default values and no keyword-only arguments.
        inner: The kernel of ``op`` for CPU and CUDA tensors, which is below this one.
        setup_context: ``setup_context(ctx, inputs, output)``, as in ``torch.library.register_autograd``.
        backward: ``backward(ctx, *grads)``, with a gradient for each result tensor. It finds ``ctx.needs_input_grad``
            and returns gradients as the schema orders the arguments, with a list for each list of tensors.

    Raises:
        TypeError: The schema has default values or keyword-only arguments.
    """
    schema = op._schema
    if any(argument.has_default_value() or argument.kwarg_only for argument in schema.arguments):
        raise TypeError(f"{schema.name}: expected a schema without default values and keyword-only arguments")
    arguments_of, results_of = _Layout(schema.arguments), _Layout(schema.returns)

    def run(call: _Call) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            if unobserved(call.arguments):
                return inner(*call.arguments)
            return op.redispatch(call.keys & torch._C._after_autograd_keyset, *call.arguments)

    class Autograd(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: _Call, *_: Any) -> Any:
            output = run(call)
            ctx.lengths = arguments_of.lengths(call.arguments)
            if setup_context is not None:
                setup_context(ctx, call.arguments, output)
            if not results_of.has_lists:
                return output
            call.result_lengths = results_of.lengths(output)
            return tuple(results_of.flatten(output))

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            needs = ctx.needs_input_grad
            ctx.needs_input_grad = tuple(arguments_of.restore(needs[1:], ctx.lengths))
            try:
                return (None, *arguments_of.flatten(backward(ctx, *grads)))
            finally:
                ctx.needs_input_grad = needs

    def kernel(keys: Any, *arguments: Any) -> Any:
        call = _Call(keys, arguments)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            return run(call)
        output = Autograd.apply(call, *arguments_of.flatten(arguments))
        return tuple(results_of.restore(output, call.result_lengths)) if results_of.has_lists else output

    return kernel
