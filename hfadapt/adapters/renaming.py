"""Calling an adapter of a folder otherwise than it is called there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..method.delta import check_adapter_name

__all__ = ["renamed"]


def renamed(
    data: Mapping[str, Any], tensors: Mapping[str, Tensor], old: str, new: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a folder describes, and its tensors, with the adapter or task ``old`` called ``new``.

    Compositions are left as they are: a folder's part with one adapter has none.

    Args:
        data: ``hfadapt_config.json``, or a part of it.
        tensors: By their keys in the file.
        old: The name there.
        new: The name here.

    Raises:
        AttachError: ``new`` is no name for an adapter.
    """
    check_adapter_name(new)
    if old == new:
        return dict(data), dict(tensors)
    # A module of the base may be called as the adapter is: names are changed where the format puts adapters' only.
    place = re.compile(
        rf"(^(?:heads|hfadapt_shared)|\.hfadapt\.deltas\.[^.]+\.adapters|\.hfadapt\.copies)\.{re.escape(old)}\."
    )
    described = dict(data)
    for key in ("adapters", "own_modules"):
        if key in data:
            described[key] = {new if name == old else name: value for name, value in data[key].items()}
    if data.get("active") == old:
        described["active"] = new
    return described, {place.sub(rf"\1.{new}.", key): tensor for key, tensor in tensors.items()}
