"""What a folder says that this model cannot take: the same faults, whichever library wrote the folder."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from .. import plugins
from ..errors import CheckpointError
from ..method import CompositionMethod

__all__ = ["joining_method", "refuse_taken"]


def joining_method(name: str, where: Any) -> CompositionMethod:
    """Return the method by which a folder joins adapters.

    Args:
        name: Of the method.
        where: For the error.

    Raises:
        RegistryError: there is no method of that name.
        CheckpointError: it is one that is attached.
    """
    method = plugins.methods()[name]
    if not isinstance(method, CompositionMethod):
        joining = [one for one, known in plugins.methods().items() if isinstance(known, CompositionMethod)]
        raise CheckpointError(
            "the folder joins adapters by a method that is attached",
            where=str(where),
            got=name,
            allowed=", ".join(joining) or "no method here joins adapters",
            try_="save again; hfadapt_config.json was changed",
        )
    return method


def refuse_taken(names: Iterable[str], had: Collection[str], where: Any) -> None:
    """Raise where a folder brings adapters under names that the model has, or under one name twice.

    Args:
        names: Of the folder's adapters.
        had: Of the model's.
        where: For the error.

    Raises:
        CheckpointError: some are taken; all of them are named.
    """
    brought = list(names)
    clash = [name for name in brought if name in had or brought.count(name) > 1]
    if clash:
        raise CheckpointError(
            "adapters of these names are attached already",
            where=str(where),
            got=clash,
            allowed=f"names beside {', '.join(had)}" if had else "each name once",
            try_="detach them first" + (", or hfadapt.load(..., name=...)" if len(brought) == 1 else ""),
        )
