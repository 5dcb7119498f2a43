"""``adapter_fusion``: the public function, and its opaque core ``hfadapt::adapter_fusion``.

The matrix products are torch's own, so that autograd chooses which gradients to compute and ``torch.compile`` sees
them. What lies between them (scores, dropout, softmax and weighting, one pass over [tokens, M]) is the opaque op.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import opaque
from ..backend import FusedOp
from ..dropout import check_probability, draw_seed
from .checks import check_arguments
from .rank_space import fusion_core_reference, join_up_projections, mix, score_products

__all__ = ["OP", "adapter_fusion"]

OP = FusedOp("adapter_fusion", adapters=8)


def adapter_fusion(
    query: Tensor,
    hidden: Sequence[Tensor],
    up: Sequence[Tensor],
    up_bias: Sequence[Tensor] | None,
    scale: Sequence[float | Tensor],
    query_weight: Tensor,
    query_bias: Tensor | None,
    key_weight: Tensor,
    key_bias: Tensor | None,
    value_weight: Tensor,
    *,
    temperature: float = 1.0,
    dropout: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """AdapterFusion: ``sum_n p_n V u_n`` over the outputs ``u_n = s_n (U_n z_n + b_n)`` of N adapters.

    ``p = softmax_n(drop((Q x + b_q) . (K u_n + b_k)) / temperature)``, not divided by ``sqrt(D)`` (Pfeiffer et al.
    2021, arXiv:2005.00247). Computed in the bottleneck's space: no ``u_n`` is formed (see ``rank_space.py``).

    Args:
        query: x, [B, T, D].
        hidden: z_n, one [B, T, R_n] an adapter: the bottleneck after its non-linearity. Sizes R_n may differ.
        up: U_n, one [D, R_n] an adapter.
        up_bias: b_n, one [D] an adapter, or ``None``.
        scale: s_n, one number or tensor ([1] or [D]) an adapter.
        query_weight: Q, [D, D].
        query_bias: b_q, [D], or ``None``.
        key_weight: K, [D, D].
        key_bias: b_k, [D], or ``None``. Changes the result only where dropout is on.
        value_weight: V, [D, D].
        temperature: Divides the scores.
        dropout: Probability of dropping a score; used when ``training``.
        training: Whether dropout is on.
        seed: int64 [1] that fixes the dropout mask; drawn from torch's generator when needed and ``None``.
        return_weights: Return p too.

    Returns:
        [B, T, D] in the query's dtype, and with ``return_weights`` p [B, T, N], float32 or float64.

    Raises:
        ShapeError: A shape, dtype, device or number of adapters does not fit.
        BackendError: A backend asked for by name cannot run.
    """
    check_probability("adapter_fusion", dropout)
    tensors = (
        query, list(hidden), list(up), None if up_bias is None else list(up_bias),
        query_weight, query_bias, key_weight, key_bias, value_weight,
    )  # fmt: skip
    x, hidden, up, up_bias, qw, qb, kw, kb, vw = opaque.autocast_inputs(query.device.type, *tensors)
    check_arguments(x, hidden, up, up_bias, scale, qw, qb, kw, kb, vw, temperature)
    if x.dtype == torch.float16 and x.device.type == "cpu":
        # torch's float16 product on CPU is a hundred times slower than its float32 product.
        x, qw, qb, kw, kb, vw = (None if t is None else t.float() for t in (x, qw, qb, kw, kb, vw))
        hidden, up = [z.float() for z in hidden], [u.float() for u in up]
        up_bias = None if up_bias is None else [b.float() for b in up_bias]
    dropout = dropout if training else 0.0
    if dropout == 0.0:
        seed = None
    elif seed is None:
        seed = draw_seed(x.device)

    tokens = x.reshape(-1, x.shape[-1])
    columns = join_up_projections(up, up_bias, scale)
    products = score_products(tokens, columns, qw, qb, kw)
    shift = None
    if seed is not None and kb is not None:
        shift = tokens @ (kb @ qw)
        shift = shift if qb is None else shift + qb @ kb
    arguments = (products, [z.reshape(-1, z.shape[-1]) for z in hidden], shift, float(temperature), dropout, seed)
    if not torch.compiler.is_compiling() and _select(products, len(hidden)).backend == "reference":
        weighted, weights = fusion_core_reference(*arguments)
    else:
        weighted, weights = _forward_op(*arguments)
    out = mix(weighted, columns, vw).reshape(query.shape)
    if query.dtype == torch.float16 and out.dtype == torch.float32:
        out = out.half()
    return (out, weights.reshape(*query.shape[:-1], len(hidden))) if return_weights else out


def _select(products: Tensor, adapters: int) -> Any:
    return OP.select(products.device.type, products.dtype, adapters=adapters)


_ARGS = "Tensor products, Tensor[] hidden, Tensor? shift, float temperature, float dropout, Tensor? seed"


def _kernel(products: Tensor, hidden: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    return _select(products, len(hidden)).forward(products, hidden, *rest)


def _backward_kernel(
    grad_weighted: Tensor,
    grad_weights: Tensor | None,
    weights: Tensor,
    products: Tensor,
    hidden: list[Tensor],
    *rest: Any,
) -> tuple[Tensor, list[Tensor], Tensor]:
    implementation = _select(products, len(hidden))
    return implementation.backward(grad_weighted, grad_weights, weights, products, hidden, *rest)


def empty_results(products: Tensor, adapters: int) -> tuple[Tensor, Tensor]:
    """Empty ``p z`` and p."""
    stats = torch.promote_types(products.dtype, torch.float32)
    return products.new_empty(products.shape), products.new_empty(products.shape[0], adapters, dtype=stats)


def empty_gradients(
    products: Tensor, hidden: Sequence[Tensor], shift: Tensor | None, need_hidden: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Empty gradients of products, hidden and shift; those that are not needed have no element."""
    return (
        products.new_empty(products.shape),
        [z.new_empty(z.shape) if need_hidden else z.new_empty(0) for z in hidden],
        products.new_empty(0) if shift is None else shift.new_empty(shift.shape),
    )


def _fake(products: Tensor, hidden: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_results(products, len(hidden))


def _backward_fake(
    grad_weighted: Tensor, grad_weights: Tensor | None, weights: Tensor, products: Tensor, hidden: list[Tensor],
    shift: Tensor | None, *rest: Any,
) -> tuple[Tensor, list[Tensor], Tensor]:  # fmt: skip
    return empty_gradients(products, hidden, shift, rest[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    products, hidden, shift, temperature, dropout, seed = inputs
    ctx.save_for_backward(products, shift, seed, output[1], *hidden)
    ctx.options = (temperature, dropout)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_weighted: Tensor | None, grad_weights: Tensor | None) -> tuple[Any, ...]:
    products, shift, seed, weights, *hidden = ctx.saved_tensors
    if grad_weighted is None and grad_weights is None:
        return (None,) * 6
    if grad_weighted is None:
        grad_weighted = torch.zeros_like(products)
    need = ctx.needs_input_grad
    need_hidden = any(need[1])
    grad_products, grad_hidden, grad_shift = _backward_op(
        grad_weighted, grad_weights, weights, products, hidden, shift, *ctx.options, seed, need_hidden
    )
    return (
        grad_products if need[0] else None,
        [grad if wanted else None for grad, wanted in zip(grad_hidden, need[1], strict=True)],
        grad_shift if need[2] else None,
        None,
        None,
        None,
    )


_forward_op = opaque.define(
    "adapter_fusion",
    f"({_ARGS}) -> (Tensor weighted, Tensor weights)",
    _kernel,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = opaque.define(
    "adapter_fusion_backward",
    f"(Tensor grad_weighted, Tensor? grad_weights, Tensor weights, {_ARGS}, bool need_hidden) -> "
    "(Tensor grad_products, Tensor[] grad_hidden, Tensor grad_shift)",
    _backward_kernel,
    _backward_fake,
    autocast=False,
)
