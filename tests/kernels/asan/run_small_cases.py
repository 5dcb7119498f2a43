"""Small calls of every C++ op, forward and backward, for AddressSanitizer (tools/asan_kernels.sh).

Sizes are odd and prime, tasks are mixed, absent (-1) and unsorted, ranks and prefixes differ; tensors are heap blocks
of exactly their size, so that one element too far is found.
"""

from __future__ import annotations

import torch

import hfadapt_kernels as hk
from hfadapt_kernels import native
from hfadapt_kernels.int8_ways import INT8_WAYS, use_int8_way
from hfadapt_kernels.namespace import cpu_ops

assert native.available(), native.why_not()
IDS = [2, -1, 0, 2]
SEED = torch.tensor([(1 << 33) + 5])
DROPOUT = {"dropout": 0.3, "training": True, "seed": SEED}


def backward(out, leaves):
    """Gradients of all results to all leaves."""
    outs = [out] if isinstance(out, torch.Tensor) else list(out)
    torch.autograd.grad([o.sum() for o in outs], leaves, allow_unused=True)


class Maker:
    """Random leaves of one dtype; remembers them."""

    def __init__(self, dtype):
        self.dtype, self.leaves = dtype, []

    def __call__(self, *shape):
        leaf = (torch.randn(*shape, dtype=torch.float32) * 0.3).to(self.dtype).requires_grad_()
        self.leaves.append(leaf)
        return leaf


def parallel_adapter_norm(dtype):
    for rows, tokens, width, inner, ranks, ids in (
        (1, 1, 1, 1, [1], [0]),
        (4, 7, 37, 29, [3, 17, 65], IDS),
        (2, 50, 64, 96, [8, 130], [1, 0]),
    ):
        new = Maker(dtype)
        x, h, norm = new(rows, tokens, width), new(rows, tokens, inner), (new(width), new(width))
        down, up = [new(r, inner) for r in ranks], [new(width, r) for r in ranks]
        extra = {"down_bias": [new(r) for r in ranks], "up_bias": [new(width) for _ in ranks]}
        extra["scale"] = [new(width if rows > 1 else 1) for _ in ranks]
        for kind in ("layer", "rms"):
            extra |= {"norm": kind, "norm_weight": norm[0], "norm_bias": norm[1] if kind == "layer" else None}
            batch = hk.TaskBatch.from_ids(ids, len(ranks))
            out = hk.parallel_adapter_norm(
                x, h, down, up, batch, activation="gelu", residual=x.detach(), **extra, **DROPOUT
            )
            backward(out, new.leaves)


def grouped_lora(dtype):
    for rows, tokens, inputs, outputs, ranks, ids in (
        (1, 1, 1, 1, [1], [0]),
        (4, 7, 37, 53, [1, 24, 5], IDS),
        (3, 51, 33, 130, [70, 8], [1, -1, 0]),
    ):
        new = Maker(dtype)
        x, y, weight = new(rows, tokens, inputs), new(rows, tokens, outputs), new(outputs, inputs)
        a, b = [new(r, inputs) for r in ranks], [new(outputs, r) for r in ranks]
        batch, scale = hk.TaskBatch.from_ids(ids, len(ranks)), [0.5] * len(ranks)
        backward(hk.grouped_lora(x, a, b, scale, batch, y=y, **DROPOUT), new.leaves)
        backward(hk.grouped_lora(x, a, b, [new(1) for _ in ranks], batch), new.leaves)
        backward(hk.lora_linear(x, weight.detach(), None, a, b, scale, batch), new.leaves)


def prefix_attention(dtype):
    for rows, heads, groups, queries, keys, dim, lengths, ids in (
        (1, 1, 1, 1, 1, 1, [1], [0]),
        (4, 6, 2, 7, 11, 17, [3, 0, 18], IDS),
        (2, 2, 2, 1, 67, 64, [33, 5], [1, 0]),
    ):
        new = Maker(dtype)
        query = new(rows, heads, queries, dim)
        key, value = (new(rows, groups, keys, dim) for _ in range(2))
        prefixes = [[new(groups, p, dim) for p in lengths] for _ in range(2)]
        batch, bias = hk.TaskBatch.from_ids(ids, len(lengths)), new(1, heads, queries, keys)
        mask = torch.rand(rows, 1, queries, keys) > 0.2
        for options in (
            {"mask": mask, "position_bias": bias, "return_gate": True},
            {"causal": queries <= keys, "mask": torch.zeros(mask.shape).masked_fill(~mask, -1e30), **DROPOUT},
            {"form": "no_gating"},
            {"form": "relu"},
        ):
            backward(hk.prefix_attention(query, key, value, *prefixes, batch, **options), new.leaves)


def pal_attention(dtype):
    for rows, tokens, width, size, heads, ids, tasks in (
        (1, 1, 1, 1, 1, [0], 1),
        (4, 7, 37, 18, 3, IDS, 3),
        (2, 35, 40, 34, 2, [1, 0], 2),
    ):
        new = Maker(dtype)
        shapes = {"encoder": (size, width), "decoder": (width, size), "query": (size, size)}
        shapes |= {"key": (size, size), "value": (size, size), "output": (size, size)}
        weights = {name: [new(*shape) for _ in range(tasks)] for name, shape in shapes.items()}
        biases = {f"{name}_bias": [new(shape[0]) for _ in range(tasks)] for name, shape in shapes.items()}
        output = {"output": weights.pop("output")} | biases
        batch, x = hk.TaskBatch.from_ids(ids, tasks), new(rows, tokens, width)
        keys = torch.ones(rows, tokens, dtype=torch.bool)
        keys[:, tokens // 2 + 1 :] = False
        for options in ({}, output, {"mask": keys, "activation": "gelu", **DROPOUT}, {"causal": True}):
            backward(hk.pal_attention(x, **weights, batch=batch, num_heads=heads, **options), new.leaves)


def adapter_fusion(dtype):
    for rows, tokens, width, ranks in ((1, 1, 1, [1]), (2, 7, 37, [3, 17, 65]), (3, 19, 24, [48, 5])):
        new = Maker(dtype)
        hidden, up = [new(rows, tokens, r) for r in ranks], [new(width, r) for r in ranks]
        up_bias = [new(width) for _ in ranks]
        matrices, vectors = [new(width, width) for _ in range(3)], [new(width) for _ in range(2)]
        query, scale = new(rows, tokens, width), [0.5] * len(ranks)
        for biased in (True, False):
            out = hk.adapter_fusion(
                query, hidden, up, up_bias if biased else None, scale, matrices[0], vectors[0] if biased else None,
                matrices[1], vectors[1] if biased else None, matrices[2], return_weights=True,
                **(DROPOUT if biased else {}),
            )  # fmt: skip
            backward(out, new.leaves)


def frozen_linear(dtype):
    for rows, inputs, outputs in ((1, 1, 1), (33, 37, 65), (5, 96, 130)):
        for kind in ("float32", "bfloat16", "int8"):
            new = Maker(dtype)
            packed = hk.PackedLinear(torch.randn(outputs, inputs), kind)
            backward(hk.frozen_linear(new(rows, inputs), packed, new(outputs)), new.leaves)
            with torch.no_grad():
                hk.frozen_linear(new.leaves[0], packed, activation="gelu")


def int8_dynamic(dtype):
    for rows, inputs, outputs in ((1, 1, 1), (33, 37, 65), (5, 96, 130), (19, 1601, 17)):
        new = Maker(dtype)
        weight, x, bias = torch.randn(outputs, inputs), new(rows, inputs), new(outputs)
        if inputs >= 64:
            weight[:, inputs - 1] *= 50
        packed = hk.PackedLinear(weight, "int8_dynamic")
        for number, way in enumerate(INT8_WAYS):
            if cpu_ops.int8_way(number) == number:
                with use_int8_way(way):
                    backward(hk.frozen_linear(x, packed, bias), new.leaves)
                    with torch.no_grad():
                        hk.frozen_linear(x, packed, activation="gelu")
        cpu_ops.int8_way(-1)


CASES = [
    parallel_adapter_norm,
    grouped_lora,
    prefix_attention,
    pal_attention,
    adapter_fusion,
    frozen_linear,
    int8_dynamic,
]
best = torch.ops.hfadapt_cpu.isa(-1)
for isa in native.ISA_NAMES[: best + 1]:
    with native.use_isa(isa), hk.use_backend("cpu"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for case in CASES:
                torch.manual_seed(0)
                case(dtype)
                print(f"ok {isa} {case.__name__} {dtype}", flush=True)
