"""Terms that modules of methods add to the training loss (AdapterFusion keeps its value matrices near the identity).

A module says in its forward pass that it wants one, with ``ask_loss_term``; the term is computed when the model has its
loss, outside of layers that activation checkpointing runs twice or without gradients.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import RoutingError
from .shards import is_shard

if TYPE_CHECKING:
    from ..routing.routing import Routing
    from .call import Call

__all__ = [
    "Noticing",
    "Penalised",
    "add_to_output",
    "ask_loss_term",
    "loss_share",
    "notice_items",
    "total",
    "warn_of_other_losses",
]

logger = logging.getLogger(__name__)


_UNNAMED = ("what an adapter adds to it", "add that term to your loss")


class Penalised(Protocol):
    """A module with a term for the loss.

    It may say in ``penalty_said`` what the term is called, and how a user adds it to a loss of their own.
    """

    def penalty(self) -> Tensor | None:
        """Return the term, a scalar, or None."""
        ...


def ask_loss_term(routing: Routing, path: str, module: Penalised) -> None:
    """Note that ``module`` runs in this forward pass and wants its term in the loss, once however often it runs."""
    routing.state.penalised[path] = module


def total(penalised: Mapping[str, Penalised]) -> Tensor | None:
    """Return the sum of the terms of modules that took part, or None where there is none.

    Raises:
        RoutingError: what a term is of lies in shards on several processes, gathered only while its layer runs.
    """
    for path, module in penalised.items():
        if isinstance(module, nn.Module) and any(map(is_shard, module.parameters())):
            raise RoutingError(
                "a term of the training loss is of parameters that lie in shards on several processes",
                where=path,
                got=f"{type(module).__name__} after fully_shard",
                allowed="data parallelism without shards, or no such term",
                try_="regularization=False in the config of AdapterFusion; or torchrun without FSDP",
            )
    terms = [module.penalty() for module in penalised.values()]
    present = [term for term in terms if term is not None]
    return torch.stack(present).sum() if present else None


class Noticing(Tensor):
    """A number that notices whether anything was computed with it."""

    used = False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":  # its dtype and its device are not the number
            for value in (*args, *(kwargs or {}).values()):
                if isinstance(value, cls):
                    value.used = True
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        return found.as_subclass(Tensor) if isinstance(found, cls) else found


def notice_items(kwargs: dict[str, Any]) -> Noticing | None:
    """Let a call's ``num_items_in_batch`` notice whether the model divides its loss by it; None where it has none.

    Heads of older make take no notice of it and return the mean of their rows, which Trainer adds up as if they had
    divided: a term must then be added up as they are, or its weight would depend on accumulation and processes.
    """
    items = kwargs.get("num_items_in_batch")
    if not isinstance(items, Tensor) or torch.compiler.is_compiling():
        return None
    kwargs["num_items_in_batch"] = made = items.detach().as_subclass(Noticing)
    return made


def loss_share(call: Call) -> Tensor | float | None:
    """Say how much of an optimizer step's penalty this call's loss must hold, or None for a call without a loss.

    Trainer divides the loss of a model by the accumulated batches, or else tells the model how many labels those
    batches hold together (``num_items_in_batch``) and adds the losses up: then each gets its share of the labels.
    """
    labels = call.get("labels")
    if labels is None:
        return None
    items = call.get("num_items_in_batch")
    if items is None or not isinstance(labels, Tensor):
        return 1.0
    return (labels != -100).sum() / items


def warn_of_other_losses(what: str, try_: str) -> None:
    """Say, once, that a training pass without labels leaves something out which the model's own loss would hold."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        _warn_once(
            f"the model is trained without labels, so its own loss is not computed and {what} is left out (Trainer "
            f"takes the labels away under label_smoothing_factor and compute_loss_func); try: {try_}"
        )


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def add_to_output(output: Any, routing: Routing, *, training: bool) -> Any:
    """Return a model's output with the penalties of this pass in its loss; as it is where it has none.

    Args:
        output: Of the model.
        routing: Of the pass.
        training: Whether the model trains and nothing around it computes the loss: then a pass without labels is
            reported, because its penalties are in no loss.
    """
    share, items, penalised = routing.state.loss_share, routing.state.items, routing.state.penalised
    if not torch.is_grad_enabled() or (term := total(penalised)) is None:
        return output
    if share is None:
        if training:
            what = getattr(next(iter(penalised.values())), "penalty_said", _UNNAMED)
            warn_of_other_losses(what[0], f"label_smoothing_factor=0, or {what[1]}")
        return output
    term = term if items is not None and not items.used else share * term
    if isinstance(output, tuple):
        return (output[0] + term, *output[1:])
    if getattr(output, "loss", None) is not None:
        output["loss"] = output.loss + term
    return output
