"""pal_attention through Triton: a grouped linear kernel around the attention kernels of prefix_attention."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activations import ACTIVATIONS
from ..batch import TaskBatch
from ..calls import takes
from ..prefix_attention import triton as prefix_attention
from ..triton.products import weight_products
from ..triton.rows import aligned, membership, pointer_table, precision
from .schema import Backward, Forward, Results, empty_gradients, empty_results
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
        self.weights: list[PalWeights] = unflatten([aligned(w) for w in call.weights], call.present)
        self.S = self.weights[0].encoder.shape[0]
        self.heads = call.num_heads
        self.ids = torch.zeros(self.B, dtype=torch.int64, device=x.device) if call.ids is None else call.ids

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
        launch = config(x.dtype)
        table = pointer_table(matrices, x.device)
        grid = (self.B, triton.cdiv(self.T, launch["BM"]), triton.cdiv(outputs, launch["BN"]))
        if out.numel():
            pal_linear_kernel[grid](
                x, out, matrices[0] if pre is None else pre, table,
                pointer_table(biases, x.device) if has_bias else table, self.ids, self.T, inputs, outputs, x.stride(0),
                out.stride(0), 1 if back else columns, columns if back else 1, ACT=act, BIAS=has_bias, ADD=add,
                SAVE=pre is not None, PRECISION=precision(x.dtype), **launch,
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
    return dx, _weight_gradients(call, args.present, dw, flows, sources, hidden[0])


def _weight_gradients(
    call: _Call, present: list[bool], dw: list[Tensor], flows: dict[str, Tensor], sources: dict[str, Tensor],
    encoded: Tensor,
) -> list[Tensor]:  # fmt: skip
    tasks = len(call.weights)
    order, starts = TaskBatch(call.ids, tasks).order()
    member = membership(call.ids, tasks)
    found = []
    for family in (name for name, here in zip(FAMILIES, present, strict=True) if here):
        wanted = dw[len(found) : len(found) + tasks]
        flow = flows[family.removesuffix("_bias")]
        shapes = [getattr(w, family).shape for w in call.weights]
        if not any(w.numel() for w in wanted):
            found += wanted
        elif family.endswith("_bias"):
            sums = member @ flow.float().view(call.B, -1, flow.shape[-1]).sum(1)
            found += [s[: shape[0]].to(w.dtype) for s, shape, w in zip(sums, shapes, wanted, strict=True)]
        else:
            products = weight_products(flow, sources.get(family, encoded), shapes, order, starts, call.T)
            found += [p.to(w.dtype) for p, w in zip(products, wanted, strict=True)]
    return [f if w.numel() else w for f, w in zip(found, dw, strict=True)]
