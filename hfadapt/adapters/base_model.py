"""The base that a folder names, loaded with transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .loading_report import Brought, read_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load_base", "model_class"]


def model_class(name: str, folder: Any, automatic: bool = False) -> Any:
    """Return the class of transformers' that a folder names.

    Args:
        name: Of the class.
        folder: For errors.
        automatic: It may be one of the ``AutoModel...`` too.

    Raises:
        CheckpointError: it has none of that name, or the name is no model's.
    """
    import transformers

    allowed: tuple[type, ...] = (transformers.PreTrainedModel,)
    if automatic:
        from transformers.models.auto.auto_factory import _BaseAutoModelClass

        allowed += (_BaseAutoModelClass,)
    found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, allowed)):
        raise CheckpointError(
            "the base's class is no model of transformers",
            where=str(folder),
            got=repr(name),
            allowed="the name of a model's class, such as BertForSequenceClassification",
            try_="hfadapt.load(folder, model=base)",
        )
    return found


def load_base(
    folder: str | os.PathLike[str],
    kind: str,
    name: str | None,
    options: Mapping[str, Any],
    automatic: bool = False,
    brought: Brought = (),
) -> PreTrainedModel:
    """Load the base that a folder names.

    Args:
        folder: For errors.
        kind: The class in transformers.
        name: What ``from_pretrained`` takes.
        options: Further arguments of it.
        automatic: As of `model_class`.
        brought: What the folder brings; nothing, where that is not known.

    Raises:
        CheckpointError: there is no such class, or the base cannot be loaded.
    """
    cls = model_class(kind, folder, automatic)
    if not name:
        raise CheckpointError(
            "the base is not known",
            where=str(folder),
            got=f"base {name!r}, class {kind!r}",
            allowed="a name or path for the base, and its class, in the folder's config",
            try_="hfadapt.load(folder, model=base)",
        )
    return read_base(
        cls.from_pretrained,
        name,
        brought,
        error=CheckpointError,
        where=str(folder),
        try_="hfadapt.load(folder, model=base)",
        **options,
    )
