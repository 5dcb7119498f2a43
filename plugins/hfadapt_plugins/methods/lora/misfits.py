"""Tables and convolutions that take no update of low rank, and why."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfadapt.architecture import is_convolution, why_no_table
from hfadapt.errors import AttachError

from .table import factor_of

__all__ = ["refuse_misfit", "refuse_other_lookup"]

_LEAVE_OUT = "a name, or a regular expression for whole paths, that leaves it out; or modules_to_save with it"


def refuse_misfit(module: Any, where: str) -> None:
    """Raise where an ``nn.Embedding`` or a convolution takes no update of low rank.

    Raises:
        AttachError: it does not.
    """
    if isinstance(module, nn.Embedding):
        why = why_no_table(module)
        if why:
            raise AttachError(
                "a table takes no update of low rank",
                where=where,
                got=why,
                allowed="an nn.Embedding that looks vectors up, and multiplies them by one number at most",
                try_="the name of its parameter (NAME.weight), with which its own forward runs updated; or "
                + _LEAVE_OUT
                if "forward" in why
                else _LEAVE_OUT,
            )
    elif not is_convolution(module):
        groups = int(module.groups)
        own = f"a forward of its own in {type(module).__name__}, which hands its weight to no forward of torch's"
        raise AttachError(
            "a convolution takes no update of low rank",
            where=where,
            got=f"{groups} groups of channels, which such an update would mix" if groups > 1 else own,
            allowed="torch's convolutions of all channels at once (groups=1), and classes whose forward calls torch's",
            try_=_LEAVE_OUT,
        )


def refuse_other_lookup(leaf: Any, path: str) -> None:
    """Raise where a table with a forward of its own returns something else than its vectors times ``embed_scale``.

    Raises:
        AttachError: it does.
    """
    if type(leaf).forward is nn.Embedding.forward or leaf.weight.is_meta:
        return
    ids = torch.arange(min(leaf.num_embeddings, 64), device=leaf.weight.device).unsqueeze(0)
    found: Any = None
    with torch.no_grad():
        want = torch.nn.functional.embedding(ids, leaf.weight) * factor_of(leaf)
        try:
            found = type(leaf).forward(leaf, ids)
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
        else:
            got = "other vectors"
    bound = 8 * torch.finfo(leaf.weight.dtype).eps
    same = isinstance(found, torch.Tensor) and found.shape == want.shape
    if not same or not torch.allclose(found.double(), want.double(), rtol=bound, atol=0.0, equal_nan=True):
        raise AttachError(
            "a table does more than to look vectors up and to multiply them by its embed_scale",
            where=path,
            got=f"{got} of {type(leaf).__name__}.forward",
            allowed="weight[ids] * embed_scale",
            try_="the name of its parameter (NAME.weight), with which its own forward runs updated; or " + _LEAVE_OUT,
        )
