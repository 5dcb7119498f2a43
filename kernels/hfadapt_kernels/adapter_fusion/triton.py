"""The core of adapter_fusion through Triton: the host side."""

# How a jitted kernel is launched (plain values for constexpr arguments, launch options) is not in its signature.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..calls import takes
from ..dropout import dropout_threshold
from ..triton.shared import fitting
from ..triton.tables import aligned_all, buffer, distances, task_table
from .rank_space import CoreInputs
from .schema import Backward, Gradients, empty_gradients, empty_results
from .triton_configs import config

__all__ = ["backward", "forward", "supports"]


def supports(*, device: str, dtype: torch.dtype, adapters: int) -> str | None:
    """Why the Triton kernels cannot serve the call; ``None`` when they can."""
    return None if dtype in (torch.float32, torch.bfloat16, torch.float16) else f"no Triton kernel for {dtype}"


class _Call:
    """The core's inputs as the kernels take them; keeps alive the copies that the table speaks of."""

    def __init__(self, kernel: str, core: CoreInputs, gradients: Sequence[Tensor] = ()) -> None:
        self.products, self.hidden = core.products.contiguous(), aligned_all(core.hidden)
        ranks, device = [z.shape[1] for z in self.hidden], self.products.device
        # The bottlenecks are made anew in each forward, and may lie elsewhere every time.
        columns = [ranks, distances(self.hidden), distances(gradients) or ranks]
        self.table = task_table(device, *columns, fresh=True)
        self.tokens, columns = self.products.shape
        self.shift = None if core.shift is None else core.shift.contiguous()
        # A kernel that does not read it still takes a pointer.
        self.seed = self.table if core.seed is None else core.seed
        drop, keep = dropout_threshold(core.dropout), 1.0 / (1.0 - core.dropout)
        self.numbers = (self.tokens, columns, len(ranks), 1.0 / core.temperature, drop, keep)
        name, launches = f"adapter_fusion_{kernel}_kernel", [config(kernel, max(ranks))]
        self.launch = fitting(name, device, launches, self.products.dtype)
        self.flags = {
            "BIASED": columns != sum(ranks),
            "SHIFT": core.shift is not None,
            "DROPOUT": core.seed is not None,
        }

    def grid(self) -> tuple[int]:
        return (-(-self.tokens // self.launch["BM"]),)


@takes(CoreInputs)
def forward(core: CoreInputs) -> tuple[Tensor, Tensor]:
    """See the schema."""
    from .triton_kernels import adapter_fusion_fwd_kernel

    call = _Call("fwd", core)
    weighted, weights = empty_results(call.products, len(call.hidden))
    if call.tokens:
        adapter_fusion_fwd_kernel[call.grid()](
            call.products, call.hidden[0], call.table, call.products if call.shift is None else call.shift, call.seed,
            weighted, weights, *call.numbers, **call.flags, **call.launch,
        )  # fmt: skip
    return weighted, weights


@takes(Backward)
def backward(args: Backward) -> Gradients:
    """See the schema."""
    from .triton_kernels import adapter_fusion_bwd_kernel

    grad_weights, weights, need_hidden = args.grad_weights, args.weights, args.need_hidden
    found = buffer(args.products, [z.shape for z in args.hidden]) if need_hidden else []
    call = _Call("bwd", args.core, found)
    grads = empty_gradients(call.products, call.hidden, call.shift, False)
    if need_hidden:
        grads = (grads[0], found, grads[2])
    extra = weights if grad_weights is None else grad_weights.contiguous()
    if call.tokens:
        adapter_fusion_bwd_kernel[call.grid()](
            args.grad_weighted.contiguous(), extra, weights, call.products, call.hidden[0], call.table, call.seed,
            grads[0], found[0] if found else call.products, call.products if call.shift is None else grads[2],
            *call.numbers, GRAD_WEIGHTS=grad_weights is not None, NEED_HIDDEN=need_hidden, **call.flags, **call.launch,
        )  # fmt: skip
    return grads
