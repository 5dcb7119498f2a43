"""A copy of an adapted model beside it, on the same tensors: adapters come and go there while the model runs."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from ..errors import CheckpointError
from ..method.delta import Delta
from ..runtime.attachment import find_attachment
from ..runtime.leaf_hooks import Hook
from ..runtime.packing import packed_in, unpack
from ..runtime.parts import others_shared, others_weights, parts_of, tensors_in
from .restore import hook_tables

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["beside", "forget", "shallow"]

_Module = TypeVar("_Module", bound=nn.Module)
# A forward in another thread may add to a dictionary that is being copied, which ends the copy.
_ATTEMPTS = 20


def beside(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of an adapted model on its own tensors, which costs no memory but that of Python's objects.

    What is attached to the copy or taken off it leaves the model as it is, and every result has the same bits: the
    parameters, the packed weights and the adapters are the model's own. Hooks of others are called for the copy too.

    Args:
        model: Adapted or not; it may run in other threads meanwhile.

    Raises:
        CheckpointError: the model holds something that cannot be copied.
    """
    left = _ATTEMPTS
    while True:
        try:
            return _copied(model)
        except Exception as error:
            left -= 1
            if left and isinstance(error, RuntimeError) and "changed" in str(error):
                continue
            raise CheckpointError(
                "the model cannot be copied, and tasks are added to and taken off a copy while it runs",
                where=type(model).__name__,
                got=f"{type(error).__name__}: {error}"[:300],
                allowed="a model that copy.deepcopy copies",
                try_="an engine before the model is given what cannot be copied",
            ) from error


def _copied(model: PreTrainedModel) -> PreTrainedModel:
    same = (*tensors_in(model), *others_weights(model), *others_shared(model), *packed_in(model))
    memo: dict[int, Any] = {id(one): one for one in same}
    tables = [table for module in parts_of(model) for table in hook_tables(module)]
    memo.update((id(table), OrderedDict()) for table in tables)
    twin = copy.deepcopy(model, memo)
    for table in tables:
        for key, hook in tuple(table.items()):
            memo[id(table)][key] = copy.deepcopy(hook, memo) if isinstance(hook, Hook) else _bound(hook, memo)
    return twin


def _bound(hook: Any, memo: dict[int, Any]) -> Any:
    """Return the hook of somebody else: the same, or bound to the copy of the module that it is bound to."""
    if isinstance(hook, functools.partial):
        given = [memo.get(id(one), one) for one in hook.args]
        return functools.partial(_bound(hook.func, memo), *given, **hook.keywords)
    owner = getattr(hook, "__self__", None)
    return hook.__func__.__get__(memo[id(owner)]) if id(owner) in memo and hasattr(hook, "__func__") else hook


def forget(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Let go of the weights of adapters in a model whose place a copy without them has taken.

    Python would free them some time later: modules and what is attached to them refer to one another.

    Args:
        model: Not to be run any more.
        names: Its adapters that are gone.
    """
    gone, state = [*names], find_attachment(model)
    if state is None or not gone:
        return
    for delta in [module for module in parts_of(model) if isinstance(module, Delta)]:
        for name in filter(delta.has, gone):
            delta.remove(name)
    for name in gone:
        if state.shared is not None and name in state.shared:
            unpack(state.shared[name])  # a packed linear and its forward refer to one another
            del state.shared[name]


def shallow(module: _Module) -> _Module:
    """Return a copy of one module that has the same children, and a list of them of its own."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin
