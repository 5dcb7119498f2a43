"""A small call of every op, with what its pages say of its launches; the case files run and count them."""

from __future__ import annotations

import torch
from torch import nn

import hfadapt_kernels as hk
from hfadapt_kernels.testing import rel_error

IDS = [1, -1, 0, 1]
ROWS, TOKENS, WIDE, TASKS = len(IDS), 3, 20, 2
RANKS = (5, 3)


def weights(*shapes) -> list[torch.Tensor]:
    return [nn.Parameter(torch.randn(shape) / 4) for shape in shapes]


def inputs(*shape):
    return torch.randn(shape, requires_grad=True)


class Norm:
    limits, steps = (1, 3), {"adapter_norm_fwd_kernel", "adapter_norm_bwd_kernel", "task_products_kernel"}

    def __init__(self, scale=((WIDE,), (WIDE,))):
        self.x = inputs(ROWS, TOKENS, WIDE)
        self.lists: list[list[torch.Tensor]] = [weights(*((r, WIDE) for r in RANKS))]
        self.lists += [weights(*((WIDE, r) for r in RANKS))]
        self.lists += [weights(*((r,) for r in RANKS)), weights(*((WIDE,) for _ in RANKS))]
        self.lists.append(weights(*scale))
        self.norm = weights((WIDE,), (WIDE,))

    def leaves(self):
        return [self.x, *(w for ws in self.lists for w in ws), *self.norm]

    def run(self, rows):
        down, up, down_bias, up_bias, scale = self.lists
        return hk.parallel_adapter_norm(
            self.x, self.x, down, up, rows, down_bias=down_bias, up_bias=up_bias, activation="gelu", norm="layer",
            scale=scale, norm_weight=self.norm[0], norm_bias=self.norm[1],
        )  # fmt: skip


class Numbers(Norm):
    steps = Norm.steps | {"adapter_norm_sums_kernel"}

    def __init__(self):
        super().__init__(((1,), (1,)))


class Mixed(Norm):
    # A number beside vectors is spread out by a launch of its own.
    limits = (2, 4)

    def __init__(self):
        super().__init__(((WIDE,), (1,)))


class Lora:
    limits, steps = (1, 3), {"lora_rows_kernel", "task_products_kernel", "lora_scales_kernel"}

    def __init__(self):
        self.x = inputs(ROWS, TOKENS, WIDE)
        self.a, self.b = weights(*((r, WIDE) for r in RANKS)), weights(*((7, r) for r in RANKS))
        self.scale = weights((1,), (1,))

    def leaves(self):
        return [self.x, *self.a, *self.b, *self.scale]

    def run(self, rows):
        seed = torch.full((1,), 5)
        return hk.grouped_lora(self.x, self.a, self.b, self.scale, rows, dropout=0.3, training=True, seed=seed)


class Fixed(Lora):
    # No learned scale, whose gradient is a launch.
    limits, steps = (1, 2), {"lora_rows_kernel", "task_products_kernel"}

    def run(self, rows):
        return hk.grouped_lora(self.x, self.a, self.b, [0.5, 2.0], rows)

    def leaves(self):
        return [self.x, *self.a, *self.b]


class Linear(Lora):
    # The base's product is torch's own.
    limits, steps = (2, 3), {"lora_rows_kernel", "task_products_kernel"}

    def __init__(self):
        super().__init__()
        self.weight, self.bias = weights((7, WIDE), (7,))
        self.weight.requires_grad_(False)

    def run(self, rows):
        return hk.lora_linear(self.x, self.weight, self.bias, self.a, self.b, [0.5, 2.0], rows)

    def leaves(self):
        return [self.x, *self.a, *self.b]


class Prefix:
    limits, steps = (1, None), {"prefix_attention_fwd_kernel"}

    def __init__(self):
        self.qkv = [inputs(ROWS, 2, TOKENS, 8) for _ in range(3)]
        self.prefix = [weights((2, 3, 8), (2, 5, 8)) for _ in range(2)]

    def leaves(self):
        return [*self.qkv, *self.prefix[0], *self.prefix[1]]

    def run(self, rows):
        return hk.prefix_attention(*self.qkv, *self.prefix, rows)


class Made(Prefix):
    # Prefixes that a network makes lie elsewhere in each forward: one launch writes where.
    limits, steps = (2, None), Prefix.steps | {"numbers_kernel"}

    def run(self, rows):
        mask = torch.ones(ROWS, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
        made = [[p * 1.0 for p in ps] for ps in self.prefix]
        return hk.prefix_attention(*self.qkv, *made, rows, mask=mask, causal=True, form="no_gating")


class Fusion:
    # One launch writes where the bottlenecks of this forward lie.
    limits, steps = (None, None), {"adapter_fusion_fwd_kernel", "adapter_fusion_bwd_kernel", "numbers_kernel"}

    def __init__(self):
        self.x, self.hidden = inputs(ROWS, TOKENS, WIDE), [inputs(ROWS, TOKENS, r) for r in RANKS]
        self.up, self.square = weights(*((WIDE, r) for r in RANKS)), weights(*((WIDE, WIDE) for _ in range(3)))

    def leaves(self):
        return [self.x, *self.hidden, *self.up, *self.square]

    def run(self, rows):
        q, k, v = self.square
        hidden = [z * 1.0 for z in self.hidden]
        return hk.adapter_fusion(self.x, hidden, self.up, None, [1.0] * TASKS, q, None, k, None, v)


class Pal:
    limits, steps = (None, None), {"pal_linear_kernel", "task_products_kernel"}

    def __init__(self):
        self.x = inputs(ROWS, TOKENS, WIDE)
        shapes = {"encoder": (8, WIDE), "query": (8, 8), "key": (8, 8), "value": (8, 8), "decoder": (WIDE, 8)}
        shapes |= {"encoder_bias": (8,), "decoder_bias": (WIDE,)}
        self.weights = {name: weights(shape, shape) for name, shape in shapes.items()}

    def leaves(self):
        return [self.x, *(w for ws in self.weights.values() for w in ws)]

    def run(self, rows):
        return hk.pal_attention(self.x, num_heads=2, batch=rows, **self.weights)


class Frozen:
    limits, steps = (1, 1), {"frozen_linear_kernel"}

    def __init__(self):
        self.x, self.packed = inputs(ROWS, TOKENS, WIDE), hk.PackedLinear(torch.randn(7, WIDE), "float32")

    def leaves(self):
        return [self.x]

    def run(self, rows):
        return hk.frozen_linear(self.x, self.packed)


OPS = (Norm, Numbers, Mixed, Lora, Fixed, Linear, Prefix, Made, Fusion, Pal, Frozen)


def step(case, rows, grad=None):
    """Result and gradients; ``grad`` is that of the result."""
    out = case.run(rows)
    grad = torch.ones_like(out) if grad is None else grad
    found = torch.autograd.grad(out, case.leaves(), grad.to(out.dtype), allow_unused=True)
    return [out, *(torch.zeros_like(t) if g is None else g for g, t in zip(found, case.leaves(), strict=True))]


def equal(case, rows, found):
    with hk.use_backend("reference"):
        wanted = step(case, rows)
    for i, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert rel_error(ours, theirs) < 1e-5, (type(case).__name__, i, rel_error(ours, theirs))
