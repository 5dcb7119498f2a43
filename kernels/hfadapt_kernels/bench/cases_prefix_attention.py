"""prefix_attention against joined prefixes and keys, and against the same attention without any prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import TaskBatch
from ..prefix_attention import prefix_attention
from .case import Case, Workload
from .rivals import compiled, gradients, inference

__all__ = ["cases"]

HEADS, DIM, PREFIX, TASKS = 12, 64, 30, 8
_JOINED, _PLAIN = "concatenate + SDPA", "SDPA without a prefix"
# Rows by number of tokens.
_ROWS = {64: 32, 128: 32, 512: 8}
# Goals against the joined form: (dtype, causal) -> by tokens.
_FORWARD = {
    ("float32", False): {64: 3.8, 128: 3.1, 512: 2.6},
    ("bfloat16", False): {64: 4.5, 128: 4.5, 512: 4.5},
    ("float32", True): {512: 4.2},
    ("bfloat16", True): {512: 7.0},
}
_BOTH = 3.0


def joined(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    ids: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Prefix tuning as peft and transformers run it: every row's prefix gathered and put in front of its keys."""
    keys = torch.cat([prefix_key[ids], key], dim=2)
    values = torch.cat([prefix_value[ids], value], dim=2)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def two_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    ids: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Nothing concatenated: scores of both parts beside each other, one softmax, two products with the values."""
    scaled, prefix = query * query.shape[-1] ** -0.5, prefix_key.shape[2]
    scores = query.new_empty(*query.shape[:3], prefix + key.shape[2])
    scores[..., :prefix] = scaled @ prefix_key[ids].transpose(-1, -2)
    scores[..., prefix:] = scaled @ key.transpose(-1, -2)
    weights = (scores if mask is None else scores.masked_fill_(~mask, float("-inf"))).softmax(-1)
    return weights[..., :prefix] @ prefix_value[ids] + weights[..., prefix:] @ value


class _Data:
    """Tensors of one case, in the memory layout of a model: [B, T, H, K] seen as [B, H, T, K]."""

    def __init__(self, queries: int, keys: int, dtype: torch.dtype, causal: bool, grad: bool) -> None:
        self.rows, self.causal = _ROWS.get(keys, 8), causal

        def heads(tokens: int) -> Tensor:
            return torch.randn(self.rows, tokens, HEADS, DIM).to(dtype).transpose(1, 2).requires_grad_(grad)

        self.query, self.key, self.value = heads(queries), heads(keys), heads(keys)
        prefixes = [torch.randn(2, HEADS, PREFIX, DIM).to(dtype) for _ in range(TASKS)]
        self.prefix_key, self.prefix_value = ([p[i].clone().requires_grad_(grad) for p in prefixes] for i in range(2))
        ids = [i % TASKS for i in torch.randperm(self.rows).tolist()]
        self.ids, self.batch = torch.tensor(ids), TaskBatch.from_ids(ids, TASKS)
        self.mask = None
        if causal:
            seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            self.mask = F.pad(seen, (PREFIX, 0), value=True)
        self.inputs = [self.query, self.key, self.value, *self.prefix_key, *self.prefix_value]
        self.grad = torch.randn_like(self.query)
        self.dtype = str(dtype).removeprefix("torch.")
        self.shape = {"rows": self.rows, "queries": queries, "keys": keys, "heads": HEADS, "head_dim": DIM}
        self.shape |= {"prefix": PREFIX, "tasks": TASKS, "causal": int(causal)}
        seen_keys = (keys - queries / 2 if causal else keys) + PREFIX
        self.flops = 4.0 * self.rows * HEADS * queries * seen_keys * DIM
        size, prefix = self.query.element_size(), 2.0 * TASKS * HEADS * PREFIX * DIM
        self.moved = size * (2.0 * self.query.numel() + 2.0 * self.key.numel() + prefix)
        # The backward reads query, key, value and the gradient, and writes three gradients.
        self.moved_both = self.moved + size * (3.0 * self.query.numel() + 4.0 * self.key.numel() + 2 * prefix)

    def ours(self) -> Tensor:
        out = prefix_attention(
            self.query, self.key, self.value, self.prefix_key, self.prefix_value, self.batch, causal=self.causal
        )
        assert isinstance(out, Tensor)
        return out

    def rival(self, one: Callable[..., Tensor]) -> Tensor:
        # Tasks own their prefixes: a mixed batch has to bring them together.
        pk, pv = torch.stack(self.prefix_key), torch.stack(self.prefix_value)
        return one(self.query, self.key, self.value, pk, pv, self.ids, self.mask)

    def plain(self) -> Tensor:
        return F.scaled_dot_product_attention(self.query, self.key, self.value, is_causal=self.causal)


def _workload(queries: int, keys: int, dtype: torch.dtype, causal: bool, both: bool) -> Workload:
    d = _Data(queries, keys, dtype, causal, both)

    def timed(call: Callable[[], Tensor], inputs: list[Tensor] = d.inputs) -> Callable[[], Any]:
        return gradients(call, inputs, d.grad) if both else inference(call)

    rivals = {_JOINED: timed(lambda: d.rival(joined)), _PLAIN: timed(d.plain, d.inputs[:3])}
    if not both:
        rivals["two parts, one softmax"] = timed(lambda: d.rival(two_parts))
    if keys == 64 and dtype == torch.float32:
        # Once a mode: compiling takes far longer than measuring.
        fast = compiled(joined)
        rivals["torch.compile of concatenate + SDPA"] = timed(lambda: d.rival(fast))
    flops, moved = (3 * d.flops, d.moved_both) if both else (d.flops, d.moved)
    return Workload(timed(d.ours), rivals, flops, moved, d.dtype, d.shape)


def cases() -> list[Case]:
    """Forward, causal, one query with a cache, and training."""
    op, found = "prefix_attention", []

    def add(title: str, goals: dict[str, float], *arguments: Any) -> None:
        found.append(Case(f"{op} {title} P={PREFIX} tasks={TASKS}", op, lambda: _workload(*arguments), goals))

    for (dtype, causal), by_tokens in _FORWARD.items():
        for tokens, goal in by_tokens.items():
            title = f"forward {'causal ' if causal else ''}{dtype} {_ROWS[tokens]}x{tokens}"
            # "Faster than the same attention with no prefix at all" is a ratio above 1.
            goals = {_JOINED: goal} if causal else {_JOINED: goal, _PLAIN: 1.0}
            add(title, goals, tokens, tokens, getattr(torch, dtype), causal, False)
    for dtype in ("float32", "bfloat16"):
        add(f"forward {dtype} one query, 512 keys", {}, 1, 512, getattr(torch, dtype), False, False)
        for tokens, rows in _ROWS.items():
            title = f"forward + backward {dtype} {rows}x{tokens}"
            add(title, {_JOINED: _BOTH}, tokens, tokens, getattr(torch, dtype), False, True)
    return found
