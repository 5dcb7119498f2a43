"""The public function `adapter_fusion`: argument checks, and the matrix products around the opaque core.

The matrix products are torch's own, so that autograd chooses which gradients to compute and ``torch.compile`` sees
them. What lies between them (scores, dropout, softmax and weighting, one pass over [tokens, M]) is ``schema.py``'s op.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from .. import opaque
from ..arguments import require_finite, require_tensors
from ..dropout import check_probability, choose_dropout
from . import cpu, fallback, triton
from .checks import check_arguments
from .kept import KeptProducts
from .rank_space import (
    CoreInputs,
    form_on_weights,
    fusion_core_reference,
    join_up_projections,
    mix,
    score_products,
    weight_products,
)
from .schema import OP, forward_op, select

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["adapter_fusion"]

OP.register("triton", triton.forward, triton.backward, triton.supports)
OP.register("cpu", cpu.forward, cpu.backward, cpu.supports)
OP.register("reference", fallback.forward, fallback.backward)


_NAMES = (
    *("query", "hidden", "up", "up_bias?"),
    *("query_weight", "query_bias?", "key_weight", "key_bias?", "value_weight"),
)


def adapter_fusion(
    query: Float[Tensor, "B T D"],
    hidden: Sequence[Float[Tensor, "B T _R"]],
    up: Sequence[Float[Tensor, "D _R"]],
    up_bias: Sequence[Float[Tensor, " D"]] | None,
    scale: Sequence[float | Float[Tensor, " _"]],
    query_weight: Float[Tensor, "D D"],
    query_bias: Float[Tensor, " D"] | None,
    key_weight: Float[Tensor, "D D"],
    key_bias: Float[Tensor, " D"] | None,
    value_weight: Float[Tensor, "D D"],
    *,
    temperature: float = 1.0,
    dropout: float = 0.0,
    training: bool = False,
    seed: Int[Tensor, " 1"] | None = None,
    return_weights: bool = False,
    kept: KeptProducts | None = None,
) -> Float[Tensor, "B T D"] | tuple[Float[Tensor, "B T D"], Float[Tensor, "B T N"]]:
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
        kept: Where products of weights alone are kept for the next call, while no gradient is asked for.

    Returns:
        [B, T, D] in the query's dtype, and with ``return_weights`` p [B, T, N], float32 or float64.

    Raises:
        ShapeError: A shape, dtype, device or number of adapters does not fit.
        BackendError: A backend asked for by name cannot run.
    """
    given = (query, hidden, up, up_bias, query_weight, query_bias, key_weight, key_bias, value_weight)
    require_tensors("adapter_fusion", _NAMES, *given)
    require_finite("adapter_fusion", "temperature", temperature)
    check_probability("adapter_fusion", dropout)
    tensors = (
        query, list(hidden), list(up), None if up_bias is None else list(up_bias),
        query_weight, query_bias, key_weight, key_bias, value_weight,
    )  # fmt: skip
    x, hidden, up, up_bias, qw, qb, kw, kb, vw = opaque.autocast_inputs(query.device.type, *tensors)
    check_arguments(x, hidden, up, up_bias, scale, qw, qb, kw, kb, vw, temperature)
    if x.dtype == torch.float16 and x.device.type == "cpu":
        # torch's float16 product on CPU is a hundred times slower than its float32 product.
        x, qw, kw, vw = (t.float() for t in (x, qw, kw, vw))
        qb, kb = (None if t is None else t.float() for t in (qb, kb))
        hidden, up = [z.float() for z in hidden], [u.float() for u in up]
        up_bias = None if up_bias is None else [b.float() for b in up_bias]
    dropout, seed = choose_dropout("adapter_fusion", dropout, training, seed, x.device)

    tokens = x.reshape(-1, x.shape[-1])
    width = sum(u.shape[1] for u in up) + (0 if up_bias is None else len(up))
    made = None
    if kept is not None and form_on_weights(len(tokens), width):
        made = kept.of(
            (*up, *(up_bias or ()), qw, qb, kw, vw),
            scale,
            lambda: weight_products(join_up_projections(up, up_bias, scale), qw, qb, kw, vw),
        )
    if made is None:
        columns = join_up_projections(up, up_bias, scale)
        products = score_products(tokens, columns, qw, qb, kw)
    else:
        products = linear(tokens, made.scores, made.shift)
    shift = None
    if seed is not None and kb is not None:
        shift = tokens @ (kb @ qw)
        shift = shift if qb is None else shift + qb @ kb
    flat = [z.reshape(-1, z.shape[-1]) for z in hidden]
    core = CoreInputs(products, flat, shift, float(temperature), dropout, seed)
    chosen = None if torch.compiler.is_compiling() else select(core)
    if chosen is None:
        weighted, weights = forward_op(*core)
    elif chosen.backend == "reference":
        weighted, weights = fusion_core_reference(core)
    else:
        weighted, weights = OP.run(chosen, forward_op, *core)
    out = (mix(weighted, columns, vw) if made is None else linear(weighted, made.values)).reshape(query.shape)
    if query.dtype == torch.float16 and out.dtype == torch.float32:
        out = out.half()
    return (out, weights.reshape(*query.shape[:-1], len(hidden))) if return_weights else out
