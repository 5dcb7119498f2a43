"""Which parameters a call computes with, whoever reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["WeightReads", "holds_compiled_code"]


class WeightReads(TorchFunctionMode):
    """Notes the parameters that torch computes with inside its block.

    A fused kernel may hold the modules whose work it does, call none of them, and read their weights: no hook comes by,
    but the weights do. Questions about a tensor (its dtype, its shape) are no computation. Compiled code would be
    traced anew under it.

    Args:
        parameters: Those that may be read.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.wanted = {id(parameter) for parameter in parameters}
        self.read: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        found = self.wanted.intersection(map(id, _tensors((args, given))))
        # a launcher of kernels asks for the address alone
        if found and (getattr(func, "__name__", "") == "data_ptr" or any(True for _ in _tensors(result))):
            self.read |= found
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)


def holds_compiled_code(model: nn.Module) -> bool:
    """Say whether ``torch.compile`` was called for a module inside."""
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())
