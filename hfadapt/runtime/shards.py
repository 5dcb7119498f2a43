"""Models whose parameters lie in shards on several processes, as torch's FSDP2 (``fully_shard``) leaves them.

Training such a model needs nothing of ours: a slot's parameters are gathered and freed with their layer. What writes a
model, or adds to it, does: a shard is no value of its own, and a parameter that comes later is on every process whole,
with gradients that nobody adds up.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, distributed, nn

from ..errors import AttachError, HFAdaptError

__all__ = ["ADDED", "gathered", "gathering_modules", "is_shard", "is_sharded", "own_class", "refuse_sharded", "whole"]


#: Why nothing is added to a model that is sharded.
ADDED = "parameters that are added now would be trained on every process apart"


def _kind(module: str, name: str) -> Any:
    """A class of torch's, or the empty tuple where nothing has loaded its module, so that there is none of it."""
    return getattr(sys.modules.get(module), name, ())


def is_shard(tensor: Any) -> bool:
    """Whether a process holds a part of ``tensor`` alone."""
    return isinstance(tensor, _kind("torch.distributed.tensor", "DTensor"))


def is_sharded(model: nn.Module) -> bool:
    """Whether a parameter of ``model`` lies in shards; what is no module has none."""
    return isinstance(model, nn.Module) and any(map(is_shard, model.parameters()))


def gathering_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that gather parameters when they are called, and free them when they return."""
    kind = _kind("torch.distributed.fsdp", "FSDPModule")
    return [module for module in model.modules() if isinstance(module, kind)] if kind else []


def own_class(model: nn.Module) -> type:
    """The class that a model has without sharding: ``fully_shard`` puts one in front that is in no library."""
    kind = _kind("torch.distributed.fsdp", "FSDPModule")
    return next(one for one in type(model).__mro__ if not (kind and issubclass(one, kind)))


def refuse_sharded(
    model: nn.Module, *, where: str, why: str, try_: str, error: type[HFAdaptError] = AttachError
) -> None:
    """Raise where ``model`` is sharded.

    Args:
        model: Any model.
        where: For the error.
        why: What would come of it.
        try_: For the error.
        error: Its class.

    Raises:
        HFAdaptError: of the class ``error``.
    """
    if is_sharded(model):
        raise error(
            f"the model's parameters lie in shards on several processes, and {why}",
            where=where,
            got=f"{type(model).__name__} after fully_shard",
            allowed="a model that is whole",
            try_=try_,
        )


def whole(tensor: Tensor) -> Tensor:
    """A tensor that lies in shards, gathered, for which every process has to ask; any other as it is."""
    if is_shard(tensor):
        shard: Any = tensor
        return shard.full_tensor().detach()
    return tensor


@contextlib.contextmanager
def gathered(model: nn.Module, keys: Iterable[str]) -> Iterator[bool]:
    """Make parameters whole for what is done inside, and say whether this process is the one that writes.

    All processes come in and leave together; where the first one fails, the others go on and it raises. A model that is
    not sharded stays as it is, and every process writes.

    Args:
        model: Any model.
        keys: Names of the parameters that are read inside.
    """
    if not is_sharded(model):
        yield True
        return
    wanted = set(keys)
    by_id = {id(p): p for key, p in model.named_parameters(remove_duplicate=False) if key in wanted and is_shard(p)}
    full = {key: nn.Parameter(whole(p), requires_grad=p.requires_grad) for key, p in by_id.items()}
    places = [(m._parameters, key) for m in model.modules() for key, p in m._parameters.items() if id(p) in full]
    shards = [parameters[key] for parameters, key in places]
    for parameters, key in places:
        parameters[key] = full[id(parameters[key])]
    try:
        yield distributed.get_rank() == 0
    finally:
        for (parameters, key), shard in zip(places, shards, strict=True):
            parameters[key] = shard
        distributed.barrier()
