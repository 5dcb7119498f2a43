"""Part (d): an encoder in plain torch with LoRA on queries and values, all tasks mixed in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import TaskBatch, lora_linear, use_backend
from ..cases_grouped_lora import peft_loop
from .sizes import Size, Sizes
from .timing import milliseconds

__all__ = ["encoder"]

Row = dict[str, Any]
# The base, its input, and A and B of all tasks.
Lora = Callable[[nn.Linear, Tensor, Any, Any], Tensor]


class _Layer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        width, self.heads = size.width, size.heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.a, self.b = (
            nn.ModuleList(
                nn.ParameterList(nn.Parameter(torch.randn(shape) * 0.02) for _ in range(size.tasks)) for _ in range(2)
            )
            for shape in ((size.rank, width), (width, size.rank))
        )

    def forward(self, x: Tensor, lora: Lora) -> Tensor:
        q = lora(self.query, x, self.a[0], self.b[0])
        v = lora(self.value, x, self.a[1], self.b[1])
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, self.key(x), v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.out(mixed))
        return self.norms[1](x + self.narrow(F.gelu(self.wide(x))))


def encoder(sizes: Sizes, device: str) -> Iterator[Row]:
    """A row each for all tasks mixed, one task, peft's algorithm, and the bare base: forward, and a training step."""
    layers, size = sizes.encoder
    dtype = sizes.dtypes[-1]
    model = nn.ModuleList(_Layer(size) for _ in range(layers)).to(device, dtype)
    x = torch.randn(size.rows, size.tokens, size.width, device=device, dtype=dtype)
    ids = [row % size.tasks for row in range(size.rows)]
    mixed, one = TaskBatch.from_ids(ids, size.tasks, device=device), TaskBatch.single(size.rows, device)

    def ours(batch: TaskBatch) -> Lora:
        def lora(base: nn.Linear, x: Tensor, a: Any, b: Any) -> Tensor:
            count = batch.num_tasks
            return lora_linear(x, base.weight, base.bias, list(a)[:count], list(b)[:count], 2.0, batch)

        return lora

    variants: dict[str, Lora] = {
        f"{size.tasks} tasks mixed": ours(mixed),
        "one task": ours(one),
        "peft's loop": lambda base, x, a, b: peft_loop(x, base(x), list(a), list(b), 2.0, ids),
        "bare base": lambda base, x, a, b: base(x),
    }
    for name, lora in variants.items():

        def forward(lora: Lora = lora) -> Tensor:
            hidden = x
            for layer in model:
                hidden = layer(hidden, lora)
            return hidden

        def inference(forward: Callable[[], Tensor] = forward) -> Tensor:
            with torch.no_grad():
                return forward()

        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=device == "cuda")

        def step(forward: Callable[[], Tensor] = forward, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            out = forward()
            if out.requires_grad:  # the bare base has nothing to train
                out.float().square().mean().backward()
                optimizer.step()

        with use_backend("triton"):
            yield {
                "variant": name, "layers": layers, "size": size.label(), "dtype": str(dtype),
                "forward_ms": milliseconds(inference, device), "step_ms": milliseconds(step, device),
            }  # fmt: skip
