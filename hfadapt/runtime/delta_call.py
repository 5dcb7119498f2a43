"""One call of a delta: the tensor that it reads, and shapes and dtypes made to match."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hfadapt_kernels import TaskBatch

from ..errors import AttachError
from ..method.delta import Delta
from ..routing.routing import Routing, Rows

__all__ = ["apply_rows", "shape_like_batch", "source_of"]


def shape_like_batch(tensor: Tensor, batch_size: int) -> Tensor:
    """View ``[B * T, D]`` (models that flatten their feed-forward input) as ``[B, T, D]``."""
    rows = tensor.shape[0]
    if tensor.dim() == 2 and rows and rows != batch_size and batch_size and rows % batch_size == 0:
        return tensor.view(batch_size, -1, tensor.shape[-1])
    return tensor


def source_of(delta: Delta, value: Tensor, leaf_input: Tensor | None, routing: Routing) -> Tensor:
    """Return the tensor that ``delta`` reads, its rows on the first axis."""
    site = delta.site
    if site.source is not None:
        if site.source.key not in routing.state.taps:
            raise AttachError(
                "the tensor that a delta reads was not seen in this forward pass",
                where=f"{site.leaf} ({site.slot})",
                got=f"no call of {site.source.leaf}",
                allowed=f"a call of {site.source.leaf} before that of {site.leaf}",
                try_="another method or other layers; fused kernels that bypass that module must be switched off",
            )
        read = routing.state.taps[site.source.key]
        return read.transpose(0, 1) if site.row_axis and read.dim() > 2 else read
    return leaf_input if site.reads_leaf_input and leaf_input is not None else value


def apply_rows(delta: Delta, value: Tensor, source: Tensor, rows: Rows, **norm: Any) -> Tensor:
    """Call ``delta`` with shapes and dtypes made to match, and return a tensor like ``value``."""
    size = rows.routing.batch_size
    if value.numel() == 0:  # an expert that no token was sent to
        return value
    if not value.is_floating_point():  # ids that are about to be looked up
        return delta(value, value, rows)
    if value.dim() == 2 and source.dim() == 1:  # vectors that were looked up by ids in one list
        shaped = shape_like_batch(value, size)
        if shaped.dim() == 3:
            return apply_rows(delta, shaped, source.view(shaped.shape[:2]), rows, **norm).view(value.shape)
    if value.dim() == 1:  # a vector that all rows share
        value, source = value.unsqueeze(0), source.unsqueeze(0)
        return apply_rows(delta, value, source, rows, **norm).squeeze(0)
    shaped = value if value.dim() == 3 else shape_like_batch(value, size)
    read = shaped if source is value else source if source.dim() == 3 else shape_like_batch(source, size)
    if delta.site.source is not None and {shaped.dim(), read.dim()} == {2, 3}:
        # One flattened token a row looks like no tokens at all, on either side.
        if shaped.dim() == 2 and read.shape[1] == 1:
            shaped = shaped.unsqueeze(1)
        elif read.dim() == 2 and shaped.shape[1] == 1:
            read = read.unsqueeze(1)
    if delta.site.source is not None and shaped.dim() == read.dim() == 3 and shaped.shape[1] != read.shape[1]:
        raise AttachError(
            "a delta that reads the whole layer's input is called for a part of its tokens",
            where=f"{delta.site.leaf} ({delta.site.slot})",
            got=f"{shaped.shape[1]} of {read.shape[1]} tokens: chunked feed-forward",
            allowed="all tokens of a row in one call",
            try_="chunk_size_feed_forward=0 in the model's layers",
        )
    if shaped.shape[0] != size:
        rows = _repeated(rows, shaped.shape[0])
    dtype = shaped.dtype
    own = delta.dtype(rows.names[0])
    if own is not None and own != dtype and not torch.is_autocast_enabled(value.device.type):
        dtype = own
    if norm and dtype != value.dtype:  # adapters in float32 on a base of lower precision
        norm = {key: given.to(dtype) if isinstance(given, Tensor) else given for key, given in norm.items()}
    if dtype != shaped.dtype or dtype != read.dtype:
        # ids of a table stay whole numbers
        shaped, read = shaped.to(dtype), read.to(dtype) if read.is_floating_point() else read
    draws = rows.routing.state.draws
    if draws is None:
        changed = delta(shaped, read, rows, **norm)
    else:
        with draws.at(f"{delta.place} {rows.step}", rows.routing.state.calls):
            changed = delta(shaped, read, rows, **norm)
    same = changed.dtype == value.dtype and changed.shape == value.shape
    return changed if same else changed.to(value.dtype).view(value.shape)


def _repeated(rows: Rows, batch_size: int) -> Rows:
    """The rows of a leaf that is called with another batch size than the model (a table shared by all rows, beams)."""
    routing = rows.routing.for_batch(batch_size)
    if rows.batch.uniform:
        batch = TaskBatch.single(batch_size, rows.batch.ids.device)
    else:
        batch = rows.batch.expand(batch_size // rows.routing.batch_size)
    return replace(rows, batch=batch, routing=routing)
