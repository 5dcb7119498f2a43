"""The public function `parallel_adapter_norm`: checks, autocast and the choice of the path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..activations import get_activation
from ..arguments import require_finite, require_tensors
from ..batch import TaskBatch
from ..dropout import check_probability, choose_dropout
from ..opaque import autocast_inputs
from . import cpu, fallback, triton
from .at_once import at_once
from .checks import NAME, NORMS, check, split_scale, unknown_norm
from .reference import parallel_adapter_norm_reference
from .schema import OP, Forward, forward_op

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["parallel_adapter_norm"]

OP.register("triton", triton.forward, triton.backward, triton.supports)
OP.register("cpu", cpu.forward, cpu.backward, cpu.supports)
OP.register("reference", fallback.forward, fallback.backward)


def parallel_adapter_norm(
    x: Float[Tensor, "B *T D"],
    h: Float[Tensor, "B *T Dh"],
    down: Sequence[Float[Tensor, "_R Dh"]],
    up: Sequence[Float[Tensor, "D _R"]],
    batch: TaskBatch,
    *,
    down_bias: Sequence[Float[Tensor, " _R"]] | None = None,
    up_bias: Sequence[Float[Tensor, " D"]] | None = None,
    activation: str = "relu",
    scale: float | Sequence[float] | Sequence[Float[Tensor, " _"]] = 1.0,
    residual: Float[Tensor, "B *T D"] | None = None,
    norm: str | None = None,
    norm_weight: Float[Tensor, " D"] | None = None,
    norm_bias: Float[Tensor, " D"] | None = None,
    eps: float = 1e-5,
    norm_offset: float = 0.0,
    dropout: float = 0.0,
    training: bool = False,
    seed: Int[Tensor, " 1"] | None = None,
) -> Float[Tensor, "B *T D"]:
    """``norm(x [+ residual] + s_t (up_t(drop(act(down_t(h) + b_t))) + b'_t))``, one pass, every row its own task t.

    The bottleneck adapter of Houlsby et al. 2019 (arXiv:1902.00751) in the parallel, scaled form of He et al. 2022
    (arXiv:2110.04366), fused with the residual sum and the norm that follow it. Ranks may differ between tasks.

    Args:
        x: [B, ..., D], what the delta is added to.
        h: [B, ..., Dh], what the adapter reads; may be x itself.
        down: One [R, Dh] a task.
        up: One [D, R] a task.
        batch: Task of every row; a row with id -1 gets ``norm(x [+ residual])``, bit for bit x without norm.
        down_bias: One [R] a task, or ``None``.
        up_bias: One [D] a task, or ``None``.
        activation: A name of `hfadapt_kernels.ACTIVATIONS`.
        scale: One number, one a task, or one tensor [1] or [D] a task (then it has a gradient).
        residual: [B, ..., D] to add as well.
        norm: ``None``, ``"layer"`` or ``"rms"``; statistics are float32.
        norm_weight: [D].
        norm_bias: [D].
        eps: Added to the variance, or to the mean square.
        norm_offset: Added to ``norm_weight`` (Gemma stores its weight minus 1).
        dropout: Probability of dropping an element of the bottleneck; used when ``training``.
        training: Whether dropout is on.
        seed: int64 [1] that fixes the dropout mask; drawn from torch's generator when needed and ``None``.

    Returns:
        [B, ..., D] in the dtype of x.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        UnsupportedError: Unknown activation or norm, or a mixed ``scale``.
        BackendError: A backend asked for by name cannot run.
    """
    if residual is None and norm is None and norm_weight is None and norm_bias is None and not (training and dropout):
        done = at_once(x, h, down, up, batch, down_bias, up_bias, activation, scale)
        if done is not None:
            return done
    names = ("x", "h", "down", "up", "batch", "down_bias?", "up_bias?", "residual?", "norm_weight?", "norm_bias?")
    require_tensors(NAME, names, x, h, down, up, batch, down_bias, up_bias, residual, norm_weight, norm_bias)
    require_finite(NAME, "eps or norm_offset", eps, norm_offset)
    check_probability(NAME, dropout)
    batch.check(NAME, x.device)
    code = get_activation(activation, NAME).code
    if norm not in NORMS:
        raise unknown_norm(norm)
    learned, fixed = split_scale(scale, batch.num_tasks, x.shape[-1])
    lists: list[list[Tensor]]
    lists = [list(down), list(up), list(down_bias or ()), list(up_bias or ()), learned]
    x, h, residual, norm_weight, norm_bias, *lists = autocast_inputs(
        x.device.type, x, h, residual, norm_weight, norm_bias, *lists
    )
    downs, ups, down_biases, up_biases, learned = lists
    check(x, h, downs, ups, down_biases, up_biases, learned, batch, residual, norm, norm_weight, norm_bias)
    if batch.num_tasks == 0 or x.numel() == 0:
        # Without tasks or without rows nothing is left to fuse, and gradients are those of torch.
        return parallel_adapter_norm_reference(
            x, h, (), (), (), residual=residual, norm=norm, norm_weight=norm_weight, norm_bias=norm_bias, eps=eps,
            norm_offset=norm_offset,
        )  # fmt: skip
    dropout, seed = choose_dropout(NAME, dropout, training, seed, x.device)
    chosen = None if torch.compiler.is_compiling() else OP.select(x.device.type, x.dtype)
    if chosen is not None and chosen.backend == "reference":
        return parallel_adapter_norm_reference(
            x, h, downs, ups, batch.segments(), down_bias=down_biases, up_bias=up_biases, activation=code,
            scale=learned or fixed, residual=residual, norm=norm, norm_weight=norm_weight, norm_bias=norm_bias,
            eps=eps, norm_offset=norm_offset, dropout=dropout, seed=seed,
        )  # fmt: skip

    def tensors() -> tuple[Tensor | None, ...]:
        return (x, h, residual, norm_weight, norm_bias, *downs, *ups, *down_biases, *up_biases, *learned)

    call = Forward(
        x=x, residual=residual, h=h, down=downs, up=ups, down_bias=down_biases, up_bias=up_biases, scale=learned,
        scale_values=fixed, norm_weight=norm_weight, norm_bias=norm_bias, ids=batch.op_ids, seed=seed, activation=code,
        norm=NORMS[norm], eps=eps, norm_offset=norm_offset, dropout=dropout,
        save=torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors()),
    )  # fmt: skip
    return (forward_op(*call) if chosen is None else OP.run(chosen, forward_op, *call))[0]
