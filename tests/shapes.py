"""Shapes in signatures, checked: ``Float[Tensor, "B T D"]`` is inert in the library, and a condition here.

The library names jaxtyping's types for type checkers only, so that it needs no package more. Here the annotations are
evaluated, and beartype holds every call to them: the same letter is the same number in all arguments and the result.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import torch

F = typing.TypeVar("F", bound=Callable[..., Any])
#: Packages whose modules may hold a name of a public op.
PACKAGES = ("hfadapt_kernels", "hfadapt_plugins", "hfadapt")


def names() -> dict[str, Any]:
    """What annotations may name beside what their module imports when it runs."""
    import jaxtyping

    from hfadapt_kernels import PackedLinear, TaskBatch

    found = {name: getattr(jaxtyping, name) for name in ("Bool", "Float", "Int", "Shaped")}
    return {**found, "PackedLinear": PackedLinear, "TaskBatch": TaskBatch, "Tensor": torch.Tensor}


def checked(function: F, **more: Any) -> F:
    """A copy of a function that raises where a call or its result has other shapes than the signature says.

    Args:
        function: With annotations as strings.
        more: Names that its annotations use and only type checkers import.
    """
    from beartype import beartype
    from jaxtyping import jaxtyped

    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = typing.get_type_hints(function, {**function.__globals__, **names(), **more})
    held = jaxtyped(typechecker=beartype)(copy)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if torch.compiler.is_compiling() else held(*args, **kwargs)

    return typing.cast(F, call)


@contextlib.contextmanager
def everywhere(*functions: Callable[..., Any]) -> Iterator[None]:
    """Put the checked copies of public functions wherever a module of ours holds them."""
    copies = {id(function): checked(function) for function in functions}
    places = [
        (module, name, value)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").partition(".")[0] in PACKAGES
        for name, value in list(vars(module).items())
        if id(value) in copies
    ]
    try:
        for module, name, value in places:
            setattr(module, name, copies[id(value)])
        yield
    finally:
        for module, name, value in places:
            setattr(module, name, value)
