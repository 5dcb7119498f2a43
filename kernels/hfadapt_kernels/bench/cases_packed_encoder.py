"""What packing the linears of a whole encoder is worth: six layers of BERT-base's size, forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frozen_linear import PackedLinear, frozen_linear
from .case import Case, Workload
from .rivals import inference, onednn_linear, torch_dynamic_linear

__all__ = ["cases"]

LAYERS, ROWS, TOKENS, HEADS, D, FFN = 6, 32, 64, 12, 768, 3072
Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    """The linears of one layer: query, key, value, output, and the two of the feed-forward part."""

    linears: tuple[Linear, ...]

    def __call__(self, x: Tensor) -> Tensor:
        query, key, value, output, up, down = self.linears
        q, k, v = (f(x).view(ROWS, TOKENS, HEADS, -1).transpose(1, 2) for f in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(ROWS, TOKENS, D)
        x = F.layer_norm(x + output(mixed), (D,))
        return F.layer_norm(x + down(F.gelu(up(x))), (D,))


def _encoder(weights: list[list[Tensor]], linear: Callable[[Tensor], Linear]) -> Callable[[Tensor], Tensor]:
    layers = [_Layer(tuple(linear(weight) for weight in layer)) for layer in weights]

    def forward(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return forward


def _plain(weight: Tensor) -> Linear:
    return lambda x: F.linear(x, weight)


def _packed(kind: str) -> Callable[[Tensor], Linear]:
    def linear(weight: Tensor) -> Linear:
        packed = PackedLinear(weight, kind)
        return lambda x: frozen_linear(x, packed)

    return linear


def _forward(kind: str) -> Workload:
    sizes = [(D, D)] * 4 + [(FFN, D), (D, FFN)]
    weights = [[torch.randn(size) * size[1] ** -0.5 for size in sizes] for _ in range(LAYERS)]
    x = torch.randn(ROWS, TOKENS, D)
    ours, torchs = _encoder(weights, _packed(kind)), _encoder(weights, _plain)
    rivals = {"the same model in torch": inference(lambda: torchs(x))}
    if kind == "float32":
        onednn = _encoder(weights, onednn_linear)
        rivals["oneDNN, packed"] = inference(lambda: onednn(x))
    elif kind == "int8_dynamic":
        dynamic = _encoder(weights, torch_dynamic_linear)
        rivals["torch, dynamic int8"] = inference(lambda: dynamic(x))
    else:
        low = _encoder([[w.bfloat16() for w in layer] for layer in weights], _plain)
        given = x.bfloat16()
        rivals["torch, all in bfloat16"] = inference(lambda: low(given))
    tokens, per_token = ROWS * TOKENS, 4 * D * D + 2 * D * FFN
    return Workload(
        ours=inference(lambda: ours(x)),
        rivals=rivals,
        flops=2.0 * LAYERS * tokens * (per_token + 2 * TOKENS * D),
        bytes=4.0 * LAYERS * (per_token + 12 * tokens * D),
        dtype="float32" if kind in ("float32", "int8_dynamic") else "bfloat16",
        shape={"layers": LAYERS, "rows": ROWS, "tokens": TOKENS, "hidden": D, "weights": kind},
    )


def cases() -> list[Case]:
    """A float32 model whose linears are packed as float32, bfloat16, int8 and int8 rows too."""
    return [
        Case(f"encoder of {LAYERS} layers packed as {kind}", "frozen_linear", lambda kind=kind: _forward(kind))
        for kind in ("float32", "bfloat16", "int8", "int8_dynamic")
    ]
