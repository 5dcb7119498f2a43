"""State that a pass beside the training step's own must not disturb: random numbers, modes, gradients, precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Stopped",
    "first_outputs",
    "frozen",
    "full_precision",
    "random_state",
    "set_random_state",
]


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the state of torch's random numbers, of the CPU and of a device."""
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Put a state back."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let no parameter need a gradient: a search ends at the embeddings' output, and no weight gradient is computed.

    Under it a plain ``backward`` reaches nothing but the perturbation, which reentrant checkpointing needs:
    ``torch.autograd.grad`` is refused there.
    """
    held = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in held:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def full_precision(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a module eagerly and outside of autocast, also of the one that accelerate wraps round its ``forward``.

    Compiled code draws other dropout masks than eager code does from the same random state.
    """
    own: dict[str, Any] = module.__dict__
    original, wrapped = own.get("_original_forward"), own.get("forward")
    try:
        if original is not None:
            own["forward"] = original
        with torch.autocast(device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if original is not None:
            own["forward"] = wrapped


class Stopped(Exception):
    """Ends a forward pass whose upper layers nobody needs."""


@contextlib.contextmanager
def first_outputs(block: nn.Module, leaves: Sequence[nn.Module], *, last: int | None = None) -> Iterator[list[Tensor]]:
    """Keep what a layer makes first of each text, with its graph, in the forward pass inside.

    Texts encoded separately are several, and a shared layer runs often over each. The layer is not checkpointed inside:
    the output that a hook sees in a checkpointed layer is not that of the graph.

    Args:
        block: The layer; what it returns is a tensor, or has one in front.
        leaves: The word embeddings, whose calls begin a text.
        last: After how many texts the pass ends, by raising ``Stopped``; None runs it to its end.
    """
    kept: list[Tensor] = []
    texts: list[None] = []

    def begin(module: nn.Module, args: tuple, output: Any) -> None:
        texts.append(None)

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        if len(kept) == len(texts):
            return
        hidden = output if isinstance(output, Tensor) else output[0]
        if hidden.requires_grad:
            hidden.retain_grad()
        kept.append(hidden)
        if len(kept) == last:
            raise Stopped

    own: dict[str, Any] = block.__dict__
    checkpointed = own.get("gradient_checkpointing")
    handles = [block.register_forward_hook(keep), *(leaf.register_forward_hook(begin) for leaf in leaves)]
    try:
        if checkpointed:
            own["gradient_checkpointing"] = False
        yield kept
    finally:
        for handle in handles:
            handle.remove()
        if checkpointed:
            own["gradient_checkpointing"] = checkpointed
