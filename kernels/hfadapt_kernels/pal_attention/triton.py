"""pal_attention through Triton: a grouped linear kernel around the attention kernels of prefix_attention."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..activations import ACTIVATIONS
from ..calls import takes
from ..prefix_attention import triton as prefix_attention
from ..triton.order import task_order
from ..triton.products import Product, task_products
from ..triton.rows import precision, rows_of
from ..triton.shared import fitting
from ..triton.tables import aligned_all, buffer, distances, task_table
from .schema import OP, Backward, Forward, Results, empty_gradients, empty_results
from .triton_configs import config
from .weights import FAMILIES, PalWeights, unflatten

__all__ = ["backward", "forward", "supports"]


def supports(*, device: str, dtype: torch.dtype, head_dim: int, same_size: bool) -> str | None:
    """Why the Triton kernels cannot serve the call; ``None`` when they can."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no kernel for {dtype}"
    if head_dim > 256:
        return f"heads of {head_dim} are wider than 256"
    return None if same_size else "the tasks' pal sizes differ"


class _Call:
    """The arguments of one call, and the products with its per-task weights."""

    def __init__(self, call: Forward | Backward) -> None:
        x = call.x
        self.B, self.T, self.D = x.shape
        self.tasks = len(call.weights) // sum(call.present)
        families = [call.weights[at : at + self.tasks] for at in range(0, len(call.weights), self.tasks)]
        self.weights: list[PalWeights] = unflatten([w for ws in families for w in aligned_all(ws)], call.present)
        self.S = self.weights[0].encoder.shape[0]
        self.heads = call.num_heads
        self.ids = task_table(x.device, (0,) * self.B).view(-1) if call.ids is None else call.ids

    def linear(
        self, x: Tensor, family: str, out: Tensor, *, back: bool = False, add: bool = False, act: int = 0,
        pre: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """``out = act(x W^T + b)`` of a family, or ``x W`` with ``back``; x and out are [B * T, ...] rows."""
        import triton

        from .triton_kernels import pal_linear_kernel

        matrices = [getattr(w, family) for w in self.weights]
        biases = [getattr(w, f"{family}_bias") for w in self.weights]
        rows, columns = matrices[0].shape
        outputs, inputs = (columns, rows) if back else (rows, columns)
        has_bias = not back and biases[0] is not None
        launch = fitting("pal_linear_kernel", x.device, [config(x.dtype)], x.dtype)
        table = task_table(x.device, distances(matrices), distances(biases) if has_bias else (0,) * self.tasks)
        grid = (self.B, triton.cdiv(self.T, launch["BM"]), triton.cdiv(outputs, launch["BN"]))
        if out.numel():
            pal_linear_kernel[grid](
                x, out, matrices[0] if pre is None else pre, matrices[0], biases[0] if has_bias else matrices[0], table,
                self.ids, self.tasks, self.T, inputs, outputs, x.stride(0), out.stride(0), 1 if back else columns,
                columns if back else 1, ACT=act, BIAS=has_bias, ADD=add, SAVE=pre is not None,
                PRECISION=precision(x.dtype), **launch,
            )  # fmt: skip
        return out

    def split(self, rows: Tensor) -> Tensor:
        """Rank rows [B * T, Sp] as [B, H, T, S / H], a view."""
        return rows.view(self.B, self.T, -1)[..., : self.S].unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, heads: Tensor, rows: Tensor) -> Tensor:
        """The inverse of `split`, into ``rows``."""
        rows.view(self.B, self.T, -1)[..., : self.S].copy_(heads.transpose(1, 2).flatten(2))
        return rows

    def attention(self, hidden: Tensor, call: Forward | Backward) -> tuple[Any, ...]:
        """Arguments of the attention: no task has a prefix."""
        none = torch.full_like(self.ids, -1)
        scaling = (self.S // self.heads) ** -0.5
        qkv = (self.split(hidden[piece]) for piece in (1, 2, 3))
        return (*qkv, [], [], none, call.mask, None, call.causal, scaling, "softmax", call.dropout, call.seed)


@takes(Forward)
def forward(args: Forward) -> Results:
    """See the schema."""
    x, activation = args.x, args.activation
    call = _Call(args)
    out, hidden, lse, pre = results = empty_results(args)
    if x.numel() == 0:
        return results
    if not args.save:
        hidden = empty_results(args._replace(activation="identity", save=True))[1]
    hidden.zero_()
    call.linear(x.reshape(-1, call.D).contiguous(), "encoder", hidden[0])
    for piece, family in enumerate(("query", "key", "value"), 1):
        call.linear(hidden[0], family, hidden[piece])
    mixed, _, sums = prefix_attention.forward(*call.attention(hidden, args))
    last = call.merge(mixed, hidden[4])
    if call.weights[0].output is not None:
        last = call.linear(last, "output", hidden[5])
    code, keep = ACTIVATIONS[activation].code, pre.zero_() if pre.numel() else None
    call.linear(last, "decoder", out.view(-1, call.D), act=code, pre=keep)
    if args.save:
        lse.copy_(sums[0])
    return results


@takes(Backward)
def backward(args: Backward) -> tuple[Tensor, list[Tensor]]:
    """See the schema."""
    grad, x, hidden, lse, pre, needs = args.grad, args.x, args.hidden, args.lse, args.pre, args.needs
    dx, dw = empty_gradients(x, args.weights, needs)
    if x.numel() == 0:
        return dx, [w.zero_() for w in dw]
    call = _Call(args)
    rows = grad.reshape(-1, call.D).contiguous()
    if pre.numel():
        rows = (rows.float() * ACTIVATIONS[args.activation].derivative(pre.float())).to(x.dtype)
    like = hidden[0]
    output = call.weights[0].output is not None
    projected = call.linear(rows, "decoder", torch.zeros_like(like), back=True)
    mixed = call.linear(projected, "output", torch.zeros_like(like), back=True) if output else projected
    arguments = call.attention(hidden, args)
    saved = (call.split(hidden[4]).contiguous(), torch.zeros_like(lse), torch.stack([lse, lse]))
    needed = [True, True, False, False]
    heads = prefix_attention.backward(call.split(mixed).contiguous(), None, *arguments, *saved, needed)[:3]
    dq, dk, dv = (call.merge(h, torch.zeros_like(like)) for h in heads)
    encoded = torch.zeros_like(like)
    for part, (family, d) in enumerate((("query", dq), ("key", dk), ("value", dv))):
        call.linear(d, family, encoded, back=True, add=part > 0)
    if needs[0]:
        call.linear(encoded, "encoder", dx.view(-1, call.D), back=True)
    flows = {"encoder": encoded, "query": dq, "key": dk, "value": dv, "output": projected, "decoder": rows}
    sources = {
        "encoder": x.reshape(-1, call.D).contiguous(),
        "output": hidden[4],
        "decoder": hidden[5 if output else 4],
    }
    return dx, _weight_gradients(call, args, dw, flows, sources, hidden[0])


def _weight_gradients(
    call: _Call, args: Backward, dw: list[Tensor], flows: dict[str, Tensor], sources: dict[str, Tensor], encoded: Tensor
) -> list[Tensor]:
    """Two families a launch, each with its bias."""
    tasks = call.tasks
    _, _, tokens = rows_of(args.x, args.ids)
    order = task_order(encoded.device, args.ids, tasks, eager=OP.running is not None)
    here = [name for name, present in zip(FAMILIES, args.present, strict=True) if present]
    wanted = {name: dw[at * tasks : (at + 1) * tasks] for at, name in enumerate(here)}
    found = {
        name: buffer(encoded, [getattr(w, name).shape for w in call.weights]) if any(t.numel() for t in ts) else []
        for name, ts in wanted.items()
    }
    products = [
        Product(
            flows[name], sources.get(name, encoded), [getattr(w, name).shape for w in call.weights], found[name],
            found.get(f"{name}_bias", ()),
        )
        for name in here if not name.endswith("_bias")
    ]  # fmt: skip
    products = [product for product in products if product.want]
    for at in range(0, len(products), 2):
        first = products[at]
        second = products[at + 1] if at + 1 < len(products) else replace(first, out=(), sums=())
        task_products(first, second, order, tokens, [1.0] * tasks)
    return [
        f if w.numel() else w for name in here for f, w in zip(found[name] or wanted[name], wanted[name], strict=True)
    ]
