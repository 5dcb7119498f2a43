"""Attention over prefixes: the kernel where it serves, else longer keys and values for the stock function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hfadapt_kernels import TaskBatch, prefix_attention

__all__ = ["Part", "PrefixAttention"]

# Options that change the products in a way that the kernel does not know (Gemma 2's soft cap, attention sinks).
_UNKNOWN_TO_KERNEL = ("softcap", "s_aux", "cache", "head_mask")


@dataclass
class Part:
    """The prefixes of one adapter method at one attention.

    Args:
        keys: One ``[G, P, K]`` an adapter; P may differ.
        values: As ``keys``.
        batch: Which of them each row has.
        form: See ``PrefixConfig``.
        query: Queries of its own ``[B, H, T, K]`` (then the products are not scaled), or None for the attention's.
        bias: What is added to the products with each of ``keys``, ``[1, H, T, P]``; None for nothing.
        rest: What is added to those with the row's own keys, ``[1, H, T, Tk]``; None for what the model adds.
    """

    keys: list[Tensor]
    values: list[Tensor]
    batch: TaskBatch
    form: str
    query: Tensor | None = None
    bias: list[Tensor] | None = None
    rest: Sequence[Tensor | None] | None = None

    def of_rows(self, mine: Tensor) -> Part:
        """Return the same for some rows; the others have no prefix.

        Args:
            mine: bool ``[B]``.
        """
        return replace(self, batch=TaskBatch.from_ids(torch.where(mine, self.batch.ids, -1), self.batch.num_tasks))


def _prefix_length(parts: Sequence[Part], kind: Sequence[int]) -> int:
    """By how much the keys grow in rows whose prefixes in ``parts`` are as long as ``kind`` says."""
    return sum(length for part, length in zip(parts, kind, strict=True) if part.form == "concat")


def _joined(parts: Sequence[Part]) -> Part:
    """Prefixes of several adapters in one row (a stack): later ones stand in front, as when prepended in turn.

    Where distances count, each counts its own from the row's tokens; the first that moves the keys moves them.
    """
    first = parts[0]
    like = next((part.bias[0] for part in parts if part.bias is not None), None)
    for part in parts[1:]:
        n, m = len(first.keys), len(part.keys)
        empty_k, empty_v = first.keys[0][:, :0], first.values[0][:, :0]
        keys = [torch.cat([q, p], 1) for p in [*first.keys, empty_k] for q in [*part.keys, empty_k]]
        values = [torch.cat([q, p], 1) for p in [*first.values, empty_v] for q in [*part.values, empty_v]]
        # -1 stands for the empty prefix, which is the last of each list.
        ids = (first.batch.ids % (n + 1)) * (m + 1) + part.batch.ids % (m + 1)
        biases, rests = None, None
        if like is not None:
            none = like[..., :0]
            biases = [
                torch.cat([q, p], -1) for p in [*_biases(first, like), none] for q in [*_biases(part, like), none]
            ]
            mine, theirs = (one.rest or [None] * len(one.keys) for one in (first, part))
            rests = [p if p is not None else q for p in [*mine, None] for q in [*theirs, None]]
        batch = TaskBatch.from_ids(ids, (n + 1) * (m + 1))
        first = Part(keys, values, batch, first.form, bias=biases, rest=rests)
    return first


def _biases(part: Part, like: Tensor) -> list[Tensor]:
    """Return what is added to the products with each prefix; zeros ``[1, H, T, P]`` where distances do not count."""
    if part.bias is not None:
        return part.bias
    return [like.new_zeros(*like.shape[:-1], key.shape[1]) for key in part.keys]


class PrefixAttention:
    """Stands in for the stock attention function during one call.

    Args:
        stock: The stock function.
        name: ``eager`` or ``sdpa``.
        wants_weights: The caller asked for attention weights, which the kernel does not form.
        draws: ``AttentionCall.draws``.
    """

    def __init__(
        self, stock: Callable[..., tuple[Tensor, Tensor | None]], name: str, wants_weights: bool, draws: Any = None
    ) -> None:
        self.stock = stock
        self.draws = draws
        self.name = name
        self.wants_weights = wants_weights and name == "eager"
        self.parts: list[Part] = []

    def with_part(self, part: Part) -> PrefixAttention:
        """Return the same with one more part; the old one may serve another branch of a composition."""
        new = PrefixAttention(self.stock, self.name, self.wants_weights, self.draws)
        new.parts = [*self.parts, part]
        return new

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output ``[B, T, H, K]`` and its weights or None."""
        fits = not self.wants_weights and not any(options.get(o) is not None for o in _UNKNOWN_TO_KERNEL)
        fits = fits and all(part.bias is None for part in self.parts)

        def run(parts: Sequence[Part]) -> tuple[Tensor, Tensor | None]:
            with nullcontext() if self.draws is None else self.draws:
                return self._run(parts, fits, module, query, key, value, mask, options)

        kinds = self._kinds(fits)
        if not kinds:
            return run(self.parts)
        if len(kinds) == 1:
            return run([part for part, length in zip(self.parts, next(iter(kinds)), strict=True) if length])
        longest = max(_prefix_length(self.parts, kind) for kind in kinds)
        out, weights = torch.empty(0), None
        for place, (kind, ids) in enumerate(kinds.items()):
            mine = torch.tensor(ids, device=query.device)
            parts = [part.of_rows(mine) for part, length in zip(self.parts, kind, strict=True) if length]
            one, seen = run(parts)
            if seen is not None:  # rows with shorter prefixes give no weight to what the longest one holds more
                length = _prefix_length(self.parts, kind)
                before, after = seen[..., :length], seen[..., length:]
                seen = torch.cat([nn.functional.pad(before, (0, longest - length)), after], -1)
            out = torch.where(mine.view(-1, 1, 1, 1), one, out) if place else one
            if not place:
                weights = seen
            elif seen is None or weights is None:
                weights = None
            else:
                weights = torch.where(mine.view(-1, 1, 1, 1), seen, weights)
        return out, weights

    def _kinds(self, fits: bool) -> dict[tuple[int, ...], list[bool]]:
        """Which rows attend to prefixes of the same parts, and of the same lengths where they stand before the keys.

        Sums over other parts or longer prefixes round otherwise, so these rows are computed by themselves. Empty where
        the kernel, which sums row by row, has one part to compute; and in a traced graph, where rows are unknown.
        """
        by_length = not fits and any(part.form == "concat" for part in self.parts)
        if torch.compiler.is_compiling() or (len(self.parts) == 1 and not by_length):
            return {}
        lengths = [[part.keys[i].shape[1] if i >= 0 else 0 for i in part.batch.ids.tolist()] for part in self.parts]
        if not by_length:
            lengths = [[min(n, 1) for n in one] for one in lengths]
        rows = list(zip(*lengths, strict=True))
        return {kind: [row == kind for row in rows] for kind in dict.fromkeys(rows)}

    def _run(
        self,
        parts: Sequence[Part],
        fits: bool,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to ``parts`` besides the keys: each row to those in which it has a prefix."""
        scaling = options.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        plain = [p for p in parts if p.form == "concat"]
        added = [p for p in parts if p.form in ("no_gating", "relu")]
        gated = [p for p in parts if p.form == "gate_add"]
        kernel = _Kernel(self.name, module, query, key, value, mask, scaling, options)

        def keep_idle(out: Tensor, parts: Sequence[Part]) -> Tensor:
            """Rows without a prefix are those of the stock function, as when no row has one."""
            if not all(part.batch.idle for part in parts):
                return out
            stock, _ = self.stock(module, query, key, value, mask, **options)
            idle = torch.stack([part.batch.ids < 0 for part in parts]).all(0)
            return torch.where(idle.view(-1, 1, 1, 1), stock, out)

        if fits and len(parts) == 1 and not gated and parts[0].query is None:
            only = parts[0]
            return keep_idle(kernel(only, "softmax" if plain else only.form), parts), None
        weights = None
        if plain and fits:
            out = keep_idle(kernel(_joined(plain), "softmax"), plain)
        elif plain:
            out, weights = self._longer(_joined(plain), module, query, key, value, mask, options)
            out = keep_idle(out, plain)
        else:
            out, weights = self.stock(module, query, key, value, mask, **options)
        for part in gated:
            gate = kernel.gate(part).unsqueeze(-1).to(out.dtype)
            out = out + gate * (kernel.alone(part, "softmax") - out)
        for part in added:
            out = out + kernel.alone(part, part.form)
        return out, weights

    def _longer(
        self,
        part: Part,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Put each row's prefix in front of its keys and values, and call the stock function."""
        lengths = [k.shape[1] for k in part.keys]
        # Longer ones that no row has are cut, which nobody sees.
        used = part.batch.ids.unique().tolist() if not torch.compiler.is_compiling() else range(len(lengths))
        longest = max((lengths[i] for i in used if i >= 0), default=0)
        keys, values = (_per_row(t, part.batch, longest, key) for t in (part.keys, part.values))
        valid = torch.arange(longest, device=key.device) < torch.tensor([*lengths, 0], device=key.device).unsqueeze(1)
        valid = valid[part.batch.ids]  # -1 picks the last line: no prefix
        bias = options.get("position_bias")
        if _is_causal(self.name, module, mask, query, options):
            # With an empty static cache the stock function cuts the keys to the queries; the prefix must not be cut.
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            bias = None if bias is None else bias[..., : query.shape[2]]
            visible = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
            mask = visible.expand(1, 1, -1, -1)
        if mask is None:
            mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
        mask = mask.expand(query.shape[0], *mask.shape[1:-2], query.shape[2], mask.shape[-1])
        seen = valid[:, None, None, :].expand(*mask.shape[:-1], longest)
        if self.name == "eager" and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(
                ~mask, torch.finfo(query.dtype).min
            )
        if mask.dtype != torch.bool:
            none = torch.zeros(seen.shape, dtype=mask.dtype, device=mask.device)
            seen = none.masked_fill(~seen, torch.finfo(mask.dtype).min)
        options = {**options, "is_causal": False} if self.name == "sdpa" else options
        if bias is not None and part.bias is not None:
            of_prefix = _per_row([b.squeeze(0).transpose(1, 2) for b in part.bias], part.batch, longest, query)
            bias = bias.expand(query.shape[0], -1, -1, -1)
            for number, rest in enumerate(part.rest or ()):
                if rest is not None:
                    bias = torch.where((part.batch.ids == number).view(-1, 1, 1, 1), rest, bias)
            bias = torch.cat([of_prefix.transpose(2, 3), bias], -1)
            options = {**options, "position_bias": bias}
        elif bias is not None:
            options = {**options, "position_bias": nn.functional.pad(bias, (longest, 0))}
        key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        return self.stock(module, query, key, value, torch.cat([seen, mask], -1), **options)


def _per_row(tensors: list[Tensor], batch: TaskBatch, length: int, like: Tensor) -> Tensor:
    """Return each row's own prefix ``[B, G, length, K]``, padded with zeros."""
    padded = [nn.functional.pad(t, (0, 0, 0, length - t.shape[1])) for t in tensors]
    return torch.stack([*padded, torch.zeros_like(padded[0])])[batch.ids].to(like.dtype)


def _is_causal(name: str, module: nn.Module, mask: Tensor | None, query: Tensor, options: dict[str, Any]) -> bool:
    """Say whether the stock function would hide later keys although it is given no mask."""
    if name != "sdpa" or mask is not None or query.shape[2] == 1:
        return False
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


class _Kernel:
    """The kernel's calls for one attention call; outputs are ``[B, T, H, K]`` as the stock function's."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        options: dict[str, Any],
    ) -> None:
        bias = options.get("position_bias")
        causal = _is_causal(name, module, mask, query, options)
        if causal and key.shape[2] > query.shape[2]:
            # An empty static cache: its places behind the queries hold nothing yet.
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            bias = None if bias is None else bias[..., : query.shape[2]]
        self.query, self.key, self.value = query, key, value
        # Where a value's head is narrower or wider than a key's (MLA), zeros make them equal, and are cut again.
        self.widths = (max(key.shape[-1], value.shape[-1]), value.shape[-1])
        self.mask, self.bias, self.causal = mask, bias, causal
        self.scaling = scaling
        self.dropout = float(options.get("dropout") or 0.0)
        self.training = module.training

    def __call__(self, part: Part, form: str) -> Tensor:
        """Attention over prefix and keys."""
        return self._run(part, form).transpose(1, 2)

    def gate(self, part: Part) -> Tensor:
        """The share of the attention that goes to the prefix, ``[B, T, H]``."""
        _, gate = self._run(part, "softmax", dropout=0.0, return_gate=True)
        return gate.transpose(1, 2)

    def _run(self, part: Part, form: str, dropout: float | None = None, return_gate: bool = False) -> Any:
        query, key, value, keys, values = self._wide(part, self.query, self.key, self.value)
        made: Any = prefix_attention(
            query,
            key,
            value,
            keys,
            values,
            part.batch,
            mask=self.mask,
            causal=self.causal,
            scaling=self.scaling,
            position_bias=self.bias,
            form=form,
            dropout=self.dropout if dropout is None else dropout,
            training=self.training,
            return_gate=return_gate,
        )
        return (made[0][..., : self.widths[1]], made[1]) if return_gate else made[..., : self.widths[1]]

    def _wide(self, part: Part, query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, ...]:
        """Queries, keys, values and the prefix's, all of one width and dtype."""
        wide, dtype = self.widths[0], query.dtype

        def fill(tensor: Tensor) -> Tensor:
            room = wide - tensor.shape[-1]
            return nn.functional.pad(tensor, (0, room)) if room else tensor

        keys, values = ([fill(one.to(dtype)) for one in side] for side in (part.keys, part.values))
        return fill(query), fill(key), fill(value), keys, values

    def alone(self, part: Part, form: str) -> Tensor:
        """Attention over the prefix alone: zeros in rows without one."""
        query, scaling = (self.query, self.scaling) if part.query is None else (part.query, 1.0)
        query, nothing, _, keys, values = self._wide(part, query, self.key[:, :, :0], self.value[:, :, :0])
        out = prefix_attention(
            query,
            nothing,
            nothing,
            keys,
            values,
            part.batch,
            scaling=scaling,
            form=form,
            dropout=self.dropout,
            training=self.training,
        )
        assert isinstance(out, Tensor)  # the gate was not asked for
        return out[..., : self.widths[1]].transpose(1, 2)
