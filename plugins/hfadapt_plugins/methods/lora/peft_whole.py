"""What of an adapter's whole modules stands beside its updates in peft's files: there a module has one or the other."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from hfadapt import attachment
from hfadapt.adapters.formats import head_modules
from hfadapt.errors import AttachError

from ..shared.peft import task_type_of, whole_modules

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["described_task", "whole_beside"]

# peft saves the head of a model for these whole, whatever modules_to_save says, and drops an update of it.
_HEAD_IS_WHOLE = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def described_task(model: PreTrainedModel, leaves: Collection[str]) -> str | None:
    """Return peft's word for the model's task; None where it would replace an updated head."""
    task = task_type_of(model)
    if task in _HEAD_IS_WHOLE and any(_updated(path, leaves) for path in head_modules(model)):
        return None
    return task


def whole_beside(model: PreTrainedModel, name: str, leaves: Collection[str]) -> tuple[list[str], dict[str, Tensor]]:
    """Return what ``whole_modules`` does, without copies that nothing but an update has changed.

    Args:
        model: With the adapter attached.
        name: Of the adapter.
        leaves: The paths of what its updates change.

    Raises:
        AttachError: a module is updated, and differs from the base's too.
    """
    whole, tensors = whole_modules(model, name)
    base = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    adapter = attachment(model).require(name)
    copies = {*adapter.heads, *adapter.modules}
    for path in [path for path in whole if _updated(path, leaves)]:
        own = {key: value for key, value in tensors.items() if key.startswith(f"{path}.")}
        if path not in copies or not all(torch.equal(value.detach(), base[key].detach()) for key, value in own.items()):
            raise AttachError(
                "peft saves a module whole or updates it, and this adapter does both",
                where=f"adapter {name!r}, {path}",
                got=f"weights of its own, and an update of {_updated(path, leaves)[0]}",
                allowed="an update of what the adapter has no trained copy of",
                try_="hfadapt.save(model, folder) writes both",
            )
        whole.remove(path)
        tensors = {key: value for key, value in tensors.items() if key not in own}
    return whole, tensors


def _updated(path: str, leaves: Collection[str]) -> list[str]:
    return [leaf for leaf in leaves if f"{leaf}.".startswith(f"{path}.")]
