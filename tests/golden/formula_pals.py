"""The published code of the PALs paper as formulas: BERT with every option, in plain tensor algebra.

A second reading, without transformers and without hfadapt, so that what the goldens do not hold can be computed; on
the goldens that are here it must equal them. `layout` gives the names and shapes of the weights of two tasks.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TASKS = 2
PAL_HEADS, TOP_HEADS, TOP_LAYERS = 6, 12, 6


def placed_layers(options: dict[str, Any], placement: str) -> list[int]:
    """Numbers of the layers that have task functions."""
    total = options["num_hidden_layers"]
    match = re.fullmatch(r"(top|bottom)(\d+)", placement)
    if not match:
        return list(range(total))
    return list(range(int(match[2]))) if match[1] == "bottom" else list(range(total - int(match[2]), total))


def layout(options: dict[str, Any], placement: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every task weight; those that layers share stand once, under the encoder."""
    wide, size = options["hidden_size"], options.get("hidden_size_aug", 0)
    low, inner = options.get("extra_dim") or size, options["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for task in range(TASKS):
        for layer in placed_layers(options, placement):
            owner = f"bert.encoder.layer.{layer}"
            beside = f"{owner}.output.multi_layers.{task}" if options.get("houlsby") else f"{owner}.multi_layers.{task}"
            if options.get("houlsby"):
                shapes |= _pair(f"{owner}.attention.output.multi_layers.{task}", "aug_dense", wide, low)
            if options.get("pals"):
                for which in ("query", "key", "value"):
                    shapes |= _linear(f"{beside}.attn.{which}", size, size)
            elif options.get("houlsby") or options.get("mult"):
                shapes |= _pair(beside, "aug_dense", wide, low)
            if options.get("lhuc"):
                shapes[f"{owner}.multi_lhuc.{task}.lhuc"] = (wide,)
        top = f"bert.encoder.multi_layers.{task}"
        if options.get("pals"):
            shapes |= _linear(f"bert.encoder.mult_aug_dense.{task}", wide, size)
            shapes |= _linear(f"bert.encoder.mult_aug_dense2.{task}", size, wide)
        elif options.get("bert_lay_top"):
            shapes |= _attention(f"{top}.attention", wide) | _linear(f"{top}.intermediate.dense", wide, inner)
            shapes |= _linear(f"{top}.output.dense", inner, wide) | _norm(f"{top}.output.LayerNorm", wide)
        elif options.get("top"):
            shapes |= _linear(f"bert.encoder.mult_dense.{task}", wide, size)
            shapes |= _linear(f"bert.encoder.mult_dense2.{task}", size, wide)
            for number in range(TOP_LAYERS):
                shapes |= _attention(f"{top}.{number}", size)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _pair(owner: str, name: str, wide: int, size: int) -> dict[str, tuple[int, ...]]:
    return _linear(f"{owner}.{name}", wide, size) | _linear(f"{owner}.{name}2", size, wide)


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.gamma": (width,), f"{name}.beta": (width,)}


def _attention(owner: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes = _linear(f"{owner}.output.dense", width, width) | _norm(f"{owner}.output.LayerNorm", width)
    for which in ("query", "key", "value"):
        shapes |= _linear(f"{owner}.self.{which}", width, width)
    return shapes


class Formula:
    """Hidden states and pooled vector of one task.

    Args:
        weights: Base and task weights by the published code's names.
        options: Its options.
        placement: ``"all"``, ``"topN"`` or ``"bottomN"``.
    """

    def __init__(self, weights: dict[str, Tensor], options: dict[str, Any], placement: str) -> None:
        self.weights, self.options = weights, options
        self.placed = placed_layers(options, placement)

    def __call__(self, ids: Tensor, mask: Tensor, types: Tensor, task: int) -> dict[str, Tensor]:
        """``hidden.L`` and ``pooled``, by the names of the goldens."""
        self.mask, self.task = -10000.0 * (1 - mask[:, None, None, :].double()), task
        names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
        tables = [self.weights[f"bert.embeddings.{name}.weight"] for name in names]
        h = tables[0][ids] + tables[1][: ids.shape[1]] + tables[2][types]
        h = self._norm("bert.embeddings.LayerNorm", h)
        found: dict[str, Tensor] = {}
        for layer in range(self.options["num_hidden_layers"]):
            h = found[f"hidden.{layer}"] = self._layer(h, f"bert.encoder.layer.{layer}", layer in self.placed)
        top = f"bert.encoder.multi_layers.{task}"
        if self.options.get("bert_lay_top"):
            found[f"hidden.{layer}"] = h = self._layer(h, top, False)
        elif self.options.get("top"):
            z = self._linear(f"bert.encoder.mult_dense.{task}", h)
            for number in range(TOP_LAYERS):
                z = self._attention(z, f"{top}.{number}", TOP_HEADS, False)
            found[f"hidden.{layer}"] = h = self._linear(f"bert.encoder.mult_dense2.{task}", z)
        found["pooled"] = torch.tanh(self._linear("bert.pooler.dense", h[:, 0]))
        return found

    def _layer(self, h: Tensor, owner: str, placed: bool) -> Tensor:
        o = self.options
        a = self._attention(h, f"{owner}.attention", o["num_attention_heads"], placed and bool(o.get("houlsby")))
        f = self._linear(f"{owner}.output.dense", F.gelu(self._linear(f"{owner}.intermediate.dense", a)))
        scale = self.weights.get(f"{owner}.multi_lhuc.{self.task}.lhuc")
        scale = torch.ones(()) if scale is None else 2 * torch.sigmoid(scale)
        added = torch.zeros(())
        if placed and o.get("houlsby"):
            added = self._task_function(a, f"{owner}.output.multi_layers.{self.task}")
        elif placed and o.get("mult"):
            added = scale * self._task_function(h, f"{owner}.multi_layers.{self.task}")
        y = self._norm(f"{owner}.output.LayerNorm", f + a + added)
        return y if o.get("mult") else scale * y

    def _task_function(self, x: Tensor, owner: str) -> Tensor:
        if not self.options.get("pals"):
            return self._low_rank(x, owner)
        z = self._linear(f"bert.encoder.mult_aug_dense.{self.task}", x)
        z = self._heads(z, f"{owner}.attn", PAL_HEADS)
        return F.gelu(self._linear(f"bert.encoder.mult_aug_dense2.{self.task}", z))

    def _low_rank(self, x: Tensor, owner: str) -> Tensor:
        return self._linear(f"{owner}.aug_dense2", F.gelu(self._linear(f"{owner}.aug_dense", x)))

    def _attention(self, x: Tensor, owner: str, heads: int, adapted: bool) -> Tensor:
        u = self._linear(f"{owner}.output.dense", self._heads(x, f"{owner}.self", heads))
        if adapted:
            u = u + self._low_rank(u, f"{owner}.output.multi_layers.{self.task}")
        return self._norm(f"{owner}.output.LayerNorm", x + u)

    def _heads(self, x: Tensor, owner: str, heads: int) -> Tensor:
        q, k, v = (
            self._linear(f"{owner}.{which}", x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for which in ("query", "key", "value")
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + self.mask
        return (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.gamma"], self.weights[f"{name}.beta"], 1e-12)


__all__ = ["TASKS", "Formula", "layout", "placed_layers"]
