"""Random valid calls of every op: odd and empty sizes, rows without a task, masks, strided inputs, NaN and infinity."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hfadapt_kernels as hk

SIZES = (1, 2, 3, 5, 8, 13, 16, 31, 32, 33, 40, 65)
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "tanh", "identity")


@dataclass
class Call:
    """One call: float64 inputs by name, and what to do with them at any dtype.

    Attributes:
        op: Its name.
        inputs: Differentiable tensors, rounded to the dtype under test by whoever casts them.
        fn: Takes the tensors and the dtype, returns the results.
        about: What was drawn, for messages.
        plant: Names of the tensors that may hold NaN or infinity: nothing they reach is masked.
        frozen: Names of those that get no gradient.
    """

    op: str
    inputs: dict[str, Tensor]
    fn: Callable[[dict[str, Tensor]], list[Tensor]]
    about: dict[str, Any]
    plant: list[str]
    frozen: tuple[str, ...] = ()


class Draw(random.Random):
    """Draws sizes and tensors."""

    def size(self) -> int:
        return self.choice(SIZES)

    def often(self, p: float) -> bool:
        return self.random() < p

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        make = torch.Generator().manual_seed(self.getrandbits(40))
        return torch.randn(*shape, generator=make, dtype=torch.float64) * scale

    def ids(self, rows: int, tasks: int) -> list[int]:
        return [self.randrange(-1, tasks) for _ in range(rows)] if self.often(0.8) else [0] * rows

    def batch(self, ids: list[int], tasks: int) -> hk.TaskBatch:
        if not self.often(0.3):
            return hk.TaskBatch.from_ids(ids, tasks)
        wide = torch.full((len(ids), 2), 99)  # ids that lie apart
        wide[:, 1] = torch.tensor(ids, dtype=torch.int64)
        return hk.TaskBatch(wide[:, 1], tasks)

    def dropout(self) -> dict[str, Any]:
        if not self.often(0.4):
            return {}
        return {"dropout": self.choice((0.1, 0.5)), "training": True, "seed": torch.tensor([self.getrandbits(62)])}

    def rows_and_tokens(self) -> tuple[int, int]:
        return (0 if self.often(0.05) else self.randint(1, 5)), self.choice((1, 1, 2, 3, 7, 9, 19))


def many(prefix: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}[{i}]": t for i, t in enumerate(tensors)}


def pick(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
    return [t for name, t in tensors.items() if name.startswith(f"{prefix}[")]


def frozen_linear(d: Draw) -> Call:
    (rows, tokens), width, out = d.rows_and_tokens(), d.size(), d.size()
    inputs = {"x": d.normal(rows, tokens, width), "weight": d.normal(out, width, scale=width**-0.5)}
    inputs |= {"bias": d.normal(out)} if d.often(0.5) else {}
    activation = d.choice(ACTIVATIONS)

    def fn(t: dict[str, Tensor]) -> list[Tensor]:
        return [hk.frozen_linear(t["x"], hk.PackedLinear(t["weight"].detach()), t.get("bias"), activation=activation)]

    return Call("frozen_linear", inputs, fn, {"activation": activation}, list(inputs), frozen=("weight",))


def grouped_lora(d: Draw) -> Call:
    (rows, tokens), width, out, tasks = d.rows_and_tokens(), d.size(), d.size(), d.randint(1, 4)
    ranks, ids = [d.size() for _ in range(tasks)], d.ids(rows, tasks)
    inputs = {"x": d.normal(rows, tokens, width)} | many("a", [d.normal(r, width, scale=width**-0.5) for r in ranks])
    inputs |= many("b", [d.normal(out, r, scale=r**-0.5) for r in ranks])
    kind = d.choice(("y", "alone", "linear"))
    inputs |= {"y": d.normal(rows, tokens, out)} if kind == "y" else {}
    inputs |= {"weight": d.normal(out, width, scale=width**-0.5)} if kind == "linear" else {}
    inputs |= many("scale", [1 + d.normal(1, scale=0.1) for _ in ranks]) if d.often(0.3) else {}
    batch, options = d.batch(ids, tasks), d.dropout()

    def fn(t: dict[str, Tensor]) -> list[Tensor]:
        rest = (pick(t, "a"), pick(t, "b"), pick(t, "scale") or 0.5, batch)
        if kind == "linear":
            return [hk.lora_linear(t["x"], t["weight"], None, *rest, **options)]
        return [hk.grouped_lora(t["x"], *rest, y=t.get("y"), **options)]

    about = {"kind": kind, "ids": ids, "ranks": ranks, **options}
    return Call("grouped_lora", inputs, fn, about, list(inputs))


def parallel_adapter_norm(d: Draw) -> Call:
    (rows, tokens), width, inner, tasks = d.rows_and_tokens(), d.size(), d.size(), d.randint(1, 4)
    ranks, ids, norm = [d.size() for _ in range(tasks)], d.ids(rows, tasks), d.choice((None, "layer", "rms"))
    if norm == "layer" and width == 1:
        width = 2  # the norm of a single element is constant, and its gradient all rounding
    inputs = {"x": d.normal(rows, tokens, width), "h": d.normal(rows, tokens, inner)}
    inputs |= many("down", [d.normal(r, inner, scale=inner**-0.5) for r in ranks])
    inputs |= many("up", [d.normal(width, r, scale=r**-0.5) for r in ranks])
    if d.often(0.5):
        inputs |= many("down_bias", [d.normal(r, scale=0.1) for r in ranks])
        inputs |= many("up_bias", [d.normal(width, scale=0.1) for r in ranks])
    if d.often(0.4):
        inputs |= many("scale", [1 + d.normal(d.choice((1, width)), scale=0.1) for _ in ranks])
    inputs |= {"residual": d.normal(rows, tokens, width)} if d.often(0.5) else {}
    if norm and d.often(0.7):
        inputs |= {"norm_weight": 1 + d.normal(width, scale=0.1), "norm_bias": d.normal(width, scale=0.1)}
    options = {"activation": d.choice(ACTIVATIONS), "norm": norm, **d.dropout()}
    batch = d.batch(ids, tasks)

    def fn(t: dict[str, Tensor]) -> list[Tensor]:
        more = {name: pick(t, name) or None for name in ("down_bias", "up_bias")}
        more |= {name: t.get(name) for name in ("residual", "norm_weight", "norm_bias")}
        rest = (pick(t, "down"), pick(t, "up"), batch)
        return [hk.parallel_adapter_norm(t["x"], t["h"], *rest, scale=pick(t, "scale") or 0.5, **more, **options)]

    return Call("parallel_adapter_norm", inputs, fn, {"ids": ids, "ranks": ranks, **options}, list(inputs))


def mask_of(d: Draw, shape: tuple[int, ...]) -> Tensor | None:
    kind = d.choice(("none", "none", "bool", "additive", "blind"))
    if kind == "none":
        return None
    seen = d.normal(*shape) > -0.5
    if kind == "blind":
        seen[..., : shape[-2] // 2, :] = False
    return seen if kind != "additive" else torch.zeros(shape, dtype=torch.float32).masked_fill_(~seen, float("-inf"))


def pal_attention(d: Draw) -> Call:
    (rows, tokens), width, tasks, heads = d.rows_and_tokens(), d.size(), d.randint(1, 3), d.choice((1, 2, 3))
    size, ids = heads * d.choice((1, 2, 5, 8, 11, 34)), d.ids(rows, tasks)
    shapes = {
        "encoder": (size, width),
        "decoder": (width, size),
        **dict.fromkeys(("query", "key", "value"), (size, size)),
    }
    shapes |= {"output": (size, size)} if d.often(0.4) else {}
    biases = [n for n in shapes] if d.often(0.5) else []
    inputs = {"x": d.normal(rows, tokens, width)}
    for name, shape in shapes.items():
        inputs |= many(name, [d.normal(*shape, scale=shape[1] ** -0.5) for _ in range(tasks)])
    for name in biases:
        inputs |= many(f"{name}_bias", [d.normal(shapes[name][0], scale=0.1) for _ in range(tasks)])
    mask = mask_of(d, (d.choice((1, max(rows, 1))), 1, d.choice((1, tokens)), tokens)) if rows else None
    options = {"num_heads": heads, "causal": d.often(0.3), "activation": d.choice(ACTIVATIONS), **d.dropout()}
    batch = d.batch(ids, tasks)

    def fn(t: dict[str, Tensor]) -> list[Tensor]:
        own = {name: pick(t, name) for name in ("encoder", "decoder", "query", "key", "value")}
        more = {n: pick(t, n) or None for n in ("output", *(f"{n}_bias" for n in shapes))}
        return [hk.pal_attention(t["x"], *own.values(), batch, mask=mask, **more, **options)]

    about = {"ids": ids, "mask": mask, "size": size, **options}
    return Call("pal_attention", inputs, fn, about, [] if mask is not None or options["causal"] else list(inputs))


def prefix_attention(d: Draw) -> Call:
    rows, groups, rep, dim = 0 if d.often(0.05) else d.randint(1, 4), d.choice((1, 2, 3)), d.choice((1, 2)), d.size()
    queries, keys = d.choice((1, 2, 3, 7, 17, 33)), d.choice((0, 1, 2, 5, 16, 33))
    tasks = d.randint(1, 3)
    lengths, ids, heads = [d.choice((0, 1, 3, 8, 33)) for _ in range(tasks)], d.ids(rows, tasks), groups * rep
    inputs = {"query": d.normal(rows, heads, queries, dim)}
    inputs |= {name: d.normal(rows, groups, keys, dim) for name in ("key", "value")}
    for name in ("prefix_key", "prefix_value"):
        inputs |= many(name, [d.normal(groups, length, dim) for length in lengths])
    shape = (max(rows, 1), heads, queries, keys)
    mask = mask_of(d, (*(d.choice((1, n)) for n in shape[:3]), keys)) if rows else None
    inputs |= {"bias": d.normal(1, *shape[1:])} if d.often(0.3) else {}
    form = d.choice(("softmax", "softmax", "no_gating", "relu"))
    options = {"causal": d.often(0.4), "form": form, "return_gate": form == "softmax", **d.dropout()}
    batch = d.batch(ids, tasks)

    def fn(t: dict[str, Tensor]) -> list[Tensor]:
        rest = (pick(t, "prefix_key"), pick(t, "prefix_value"), batch)
        own = mask.to(t["query"].dtype) if mask is not None and mask.is_floating_point() else mask
        bias = t.get("bias")
        got = hk.prefix_attention(
            t["query"],
            t["key"],
            t["value"],
            *rest,
            mask=own,
            position_bias=bias,
            **options,  # type: ignore[arg-type]
        )
        return list(got) if options["return_gate"] else [got]

    about = {"ids": ids, "lengths": lengths, "keys": keys, "queries": queries, "mask": mask, **options}
    free = [n for n in inputs if n != "bias" and inputs[n].numel()] if mask is None and not options["causal"] else []
    return Call("prefix_attention", inputs, fn, about, free)


def adapter_fusion(d: Draw) -> Call:
    (rows, tokens), width, count = d.rows_and_tokens(), d.size(), d.randint(1, 5)
    ranks, biases = [d.size() for _ in range(count)], d.often(0.5)
    inputs = {"query": d.normal(rows, tokens, width)}
    inputs |= many("hidden", [d.normal(rows, tokens, r) for r in ranks])
    inputs |= many("up", [d.normal(width, r, scale=r**-0.5) for r in ranks])
    inputs |= many("up_bias", [d.normal(width, scale=0.1) for _ in ranks]) if biases else {}
    inputs |= {f"{n}_weight": d.normal(width, width, scale=width**-0.5) for n in ("query", "key", "value")}
    inputs |= {f"{n}_bias": d.normal(width, scale=0.1) for n in ("query", "key")} if biases else {}
    options = {"temperature": d.choice((1.0, 3.0)), "return_weights": True, **d.dropout()}

    def fn(t: dict[str, Tensor]) -> list[Tensor]:
        weights = (t["query_weight"], t.get("query_bias"), t["key_weight"], t.get("key_bias"), t["value_weight"])
        lists = (pick(t, "hidden"), pick(t, "up"), pick(t, "up_bias") or None, [1.0] * count)
        return list(hk.adapter_fusion(t["query"], *lists, *weights, **options))

    return Call("adapter_fusion", inputs, fn, {"ranks": ranks, **options}, list(inputs))


OPS = (frozen_linear, grouped_lora, parallel_adapter_norm, pal_attention, prefix_attention, adapter_fusion)
