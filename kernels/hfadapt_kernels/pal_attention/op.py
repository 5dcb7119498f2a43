"""The public function `pal_attention`: argument checks and the choice of the path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import opaque
from ..activations import get_activation
from ..arguments import require_tensors
from ..batch import TaskBatch
from ..dropout import check_probability, choose_dropout
from . import cpu, fallback, triton
from .checks import canonical_mask, check_arguments
from .reference import pal_attention_reference
from .schema import OP, Forward, forward_op, select
from .weights import flatten, unflatten

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

__all__ = ["pal_attention"]

OP.register("triton", triton.forward, triton.backward, triton.supports)
OP.register("cpu", cpu.forward, cpu.backward, cpu.supports)
OP.register("reference", fallback.forward, fallback.backward)

_BIASES = ("encoder_bias?", "decoder_bias?", "query_bias?", "key_bias?", "value_bias?", "output_bias?")


def pal_attention(
    x: Float[Tensor, "B T D"],
    encoder: Sequence[Float[Tensor, "_S D"]],
    decoder: Sequence[Float[Tensor, "D _S"]],
    query: Sequence[Float[Tensor, "_S _S"]],
    key: Sequence[Float[Tensor, "_S _S"]],
    value: Sequence[Float[Tensor, "_S _S"]],
    batch: TaskBatch,
    *,
    num_heads: int,
    encoder_bias: Sequence[Float[Tensor, " _S"]] | None = None,
    decoder_bias: Sequence[Float[Tensor, " D"]] | None = None,
    query_bias: Sequence[Float[Tensor, " _S"]] | None = None,
    key_bias: Sequence[Float[Tensor, " _S"]] | None = None,
    value_bias: Sequence[Float[Tensor, " _S"]] | None = None,
    output: Sequence[Float[Tensor, "_S _S"]] | None = None,
    output_bias: Sequence[Float[Tensor, " _S"]] | None = None,
    mask: Shaped[Tensor, "#B *_"] | None = None,
    causal: bool = False,
    activation: str = "identity",
    dropout: float = 0.0,
    training: bool = False,
    seed: Int[Tensor, " 1"] | None = None,
) -> Float[Tensor, "B T D"]:
    """``act(V_D MHA(V_E x))``, the task function TS(x) of a projected attention layer, every row with its own task.

    Stickland & Murray 2019 (arXiv:1902.02671, section 3.2) have no activation and 12 heads; their code has biases,
    6 heads and ``activation="gelu"``. ``output`` is the projection W^o that their "top" attention uses.

    Args:
        x: [B, T, D].
        encoder: V_E, one [S, D] a task. S is the pal size; it may differ between tasks.
        decoder: V_D, one [D, S] a task.
        query: One [S, S] a task.
        key: One [S, S] a task.
        value: One [S, S] a task.
        batch: Task of every row; a row with id -1 gets zeros.
        num_heads: Number of heads H, a divisor of S; scores are scaled by ``(S / H) ** -0.5``.
        encoder_bias: One [S] a task, or ``None``.
        decoder_bias: One [D] a task, or ``None``.
        query_bias: One [S] a task, or ``None``.
        key_bias: One [S] a task, or ``None``.
        value_bias: One [S] a task, or ``None``.
        output: W^o, one [S, S] a task, or ``None`` for no such projection.
        output_bias: One [S] a task, or ``None``; only with ``output``.
        mask: ``None``, bool [B, T] of the tokens that are seen, or [1 or B, 1, 1 or T, T], bool (True attends) or
            additive. A token that may see nothing gets what the decoder makes of zeros.
        causal: Token i sees tokens up to i.
        activation: Applied after the decoder.
        dropout: Probability of dropping an attention probability; used when ``training``.
        training: Whether dropout is on.
        seed: int64 [1] that fixes the dropout mask; drawn from torch's generator when needed and ``None``.

    Returns:
        [B, T, D] in the dtype of x.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        RowIdError: A task id is out of range.
        UnsupportedError: Unknown activation.
        BackendError: A backend asked for by name cannot run.
    """
    names = ("x", "encoder", "decoder", "query", "key", "value", "batch", "output?")
    require_tensors("pal_attention", names, x, encoder, decoder, query, key, value, batch, output)
    biases = (encoder_bias, decoder_bias, query_bias, key_bias, value_bias, output_bias)
    require_tensors("pal_attention", _BIASES, *biases)
    check_probability("pal_attention", dropout)
    batch.check("pal_attention", x.device)
    activation = get_activation(activation, "pal_attention").name
    families = (
        encoder, query, key, value, decoder, output,
        encoder_bias, query_bias, key_bias, value_bias, decoder_bias, output_bias if output is not None else None,
    )  # fmt: skip
    weights, present = flatten("pal_attention", families, batch.num_tasks)
    x, weights = opaque.autocast_inputs(x.device.type, x, weights)
    check_arguments(x, unflatten(weights, present), batch, num_heads)
    mask = canonical_mask(mask, x)
    if batch.num_tasks == 0:
        return torch.zeros_like(x)
    dropout, seed = choose_dropout("pal_attention", dropout, training, seed, x.device)
    options = (batch.op_ids, mask, num_heads, causal, activation, dropout, seed)
    save = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights))
    call = Forward(x, weights, present, *options, save)
    if torch.compiler.is_compiling():
        return forward_op(*call)[0]
    chosen = select(call)
    if chosen.backend == "reference":
        return pal_attention_reference(x, unflatten(weights, present), *options)
    return OP.run(chosen, forward_op, *call)[0]
