"""A ``Parallel`` in pieces: as many children at a time as stay in the caches, and what they share run once.

Eight children of one batch are eight batches from their first delta on. Together they leave every cache between two
layers, and each of their tensors is memory that the system has to hand out anew; one after another they do not. So a
pass that keeps nothing for a backward runs once for some children at a time, and the layers below the first delta
hand the later pieces what they gave the first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import RoutingError
from ..routing.choice import Choice, chosen
from ..routing.composition import Parallel
from ..routing.context import current
from .call import Call
from .generate import running
from .leaf_hooks import tensor_batch_size
from .parallel import first_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .attachment import Attachment

__all__ = ["TrunkForward", "join", "pieces_of", "put_trunk", "take_trunk"]

# The batch of 32 rows of 64 tokens, at which a base of BERT's size was seen to be as fast a row as it gets.
_TOKENS = 2048


class TrunkForward:
    """The ``forward`` of a layer below the first delta, which later pieces of a pass are not to run again.

    Args:
        layer: The layer.
        stack: Path of its stack.
        depth: Its number there.
    """

    def __init__(self, layer: nn.Module, stack: str, depth: int) -> None:
        self.layer = layer
        self.stack = stack
        self.depth = depth

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stock = type(self.layer).forward
        routing = current()
        growth = None if routing is None else routing.state.growth
        if growth is None or growth.trunk is None or self.depth >= growth.first.get(self.stack, 0):
            return stock(self.layer, *args, **kwargs)
        if self.depth not in growth.trunk:
            growth.trunk[self.depth] = stock(self.layer, *args, **kwargs)
        return growth.trunk[self.depth]


def put_trunk(model: PreTrainedModel, attachment: Attachment) -> None:
    """Let layers that serve one depth each hand their outputs to later pieces; one that somebody wrapped does not."""
    for stack in attachment.arch.stacks:
        for depth, path in enumerate(stack.layer_paths):
            layer = model.get_submodule(path)
            if stack.layer_paths.count(path) == 1 and "forward" not in layer.__dict__:
                layer.__dict__["forward"] = TrunkForward(layer, stack.path, depth)


def take_trunk(model: nn.Module) -> None:
    """Undo `put_trunk`."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), TrunkForward):
            del module.__dict__["forward"]


def pieces_of(
    attachment: Attachment, model: Any, args: tuple, kwargs: dict[str, Any], parameters: tuple[str, ...]
) -> list[Choice]:
    """Return what the pieces of a call choose, in order; none where it runs as a whole.

    Only passes of one stack that keep nothing behind them are cut: what else a model may return (losses, caches, the
    states and attentions of every layer) is not of the rows of one piece.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or model.training or attachment.waiting is not None:
        return []
    choice = chosen(attachment)
    node, stacks = choice.parallel, attachment.arch.stacks
    if node is None or choice.trunk is not None or len(stacks) != 1 or running(attachment) is not None:
        return []
    call = Call(args, kwargs, parameters)
    found = tensor_batch_size(args, kwargs)
    if found is None or not call.tokens or _returns_more(model, call, stacks[0].causal):
        return []
    some = max(1, _TOKENS // (found[0] * call.tokens))
    if some >= len(node.children):
        return []
    first = {} if attachment.rereads_input else first_layers(attachment, choice)
    depth = max(0, first.get(stacks[0].path, 0))
    if depth == stacks[0].num_layers:  # no child has a delta: all that is repeated are rows
        return []
    if not _shares(model, stacks[0].layer_paths[:depth]):
        return []
    # One dictionary for all pieces of this call: what the first writes, the others read.
    trunk: dict[int, Any] = {}
    groups = [node.children[start : start + some] for start in range(0, len(node.children), some)]
    return [replace(choice, node=Parallel(*group), trunk=trunk) for group in groups]


def _returns_more(model: Any, call: Call, causal: bool) -> bool:
    config = getattr(model, "config", None)

    def asked(name: str) -> bool:
        value = call.get(name)
        return bool(getattr(config, name, False) if value is None else value)

    if call.get("task_ids") is not None or call.get("labels") is not None or call.cache is not None:
        return True
    return asked("output_attentions") or asked("output_hidden_states") or (causal and asked("use_cache"))


def _shares(model: nn.Module, paths: tuple[str, ...]) -> bool:
    """Say whether all these layers hand on their outputs."""
    return all(isinstance(model.get_submodule(path).__dict__.get("forward"), TrunkForward) for path in paths)


def join(outputs: list[Any]) -> Any:
    """Return the outputs of the pieces as that of the whole: rows behind rows.

    Raises:
        RoutingError: they hold something without rows, which is not the same in all of them.
    """
    first = outputs[0]
    if isinstance(first, Tensor) and first.dim():
        return torch.cat(outputs)
    if isinstance(first, dict):
        joined = {key: join([one[key] for one in outputs]) for key in first}
        return joined if type(first) is dict else type(first)(**joined)
    if isinstance(first, (tuple, list)):
        return type(first)(join(list(part)) for part in zip(*outputs, strict=True))
    if all(one is first for one in outputs):
        return first
    raise RoutingError(
        "the children of a Parallel returned what cannot be joined",
        where="output of the model",
        got=type(first).__name__,
        allowed="tensors with the batch as their first axis",
        try_="hfadapt.active(model, name), one child after another",
    )
