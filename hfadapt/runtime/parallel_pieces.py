"""A ``Parallel`` in pieces: as many children at a time as stay in the caches, and what they share run once.

Eight children of one batch are eight batches from their first delta on. Together they leave every cache between two
layers, and each of their tensors is memory that the system has to hand out anew; one after another they do not. So a
pass that keeps nothing for a backward runs once for some children at a time, and the layers below the first delta
hand the later pieces what they gave the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import RoutingError
from ..routing.choice import Choice, chosen
from ..routing.composition import Parallel
from ..routing.context import current
from ..routing.growth import Reach
from .call import Call
from .generate import running
from .leaf_hooks import tensor_batch_size
from .parallel import first_layers, starts_at_root

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .attachment import Attachment

__all__ = ["TOKENS", "Pieces", "TrunkForward", "depths_of", "join", "pieces_of", "put_trunk", "take_trunk"]

#: The batch of 32 rows of 64 tokens, at which a base of BERT's size was seen to be as fast a row as it gets.
TOKENS = 2048


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
        if growth is None or growth.trunk is None or growth.grown or self.depth >= growth.first.get(self.stack, 0):
            return stock(self.layer, *args, **kwargs)
        key = self.stack, self.depth
        if key not in growth.trunk:
            growth.trunk[key] = stock(self.layer, *args, **kwargs)
        return growth.trunk[key]


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


@dataclass(frozen=True)
class Pieces:
    """How a call of a ``Parallel`` is cut.

    Args:
        choices: What each piece chooses, in the order in which they run.
        children: The number of each child, in the order in which the pieces return them.
    """

    choices: tuple[Choice, ...] = ()
    children: tuple[int, ...] = ()

    def join(self, outputs: list[Any]) -> Any:
        """Return the outputs of the pieces as that of the whole, the rows of each child in the order of children.

        Raises:
            RoutingError: they hold something without rows, which is not the same in all of them.
        """
        in_order = self.children == tuple(range(len(self.children)))
        return join(outputs, None if in_order else self.children)


def pieces_of(
    attachment: Attachment, model: Any, args: tuple, kwargs: dict[str, Any], parameters: tuple[str, ...]
) -> Pieces:
    """Return how a call is cut; into no pieces where it runs as a whole.

    Children whose first delta is at one depth share a piece, and so run every layer from there on, and none below.
    Only passes that keep nothing behind them are cut: what else a model may return (losses, caches, the states and
    attentions of every layer) is not of the rows of one piece.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or model.training or attachment.waiting is not None:
        return Pieces()
    choice = chosen(attachment)
    node, stacks = choice.parallel, list(attachment.arch.stacks)
    if node is None or choice.trunk is not None or running(attachment) is not None:
        return Pieces()
    if len(stacks) != 1 and [stack.kind for stack in stacks] != ["encoder", "decoder"]:
        return Pieces()
    call = Call(args, kwargs, parameters)
    found = tensor_batch_size(args, kwargs)
    if found is None or not call.tokens or _returns_more(model, call, stacks[-1].causal):
        return Pieces()
    depths = depths_of(attachment, choice.reaches)
    # Where no child has a delta, all that is repeated are rows. A decoder reads the states of an encoder from its first
    # layer on: with deltas in the one, both are each child's.
    last = stacks[0].num_layers
    if set(depths) == {last} or (len(stacks) > 1 and last in depths):
        return Pieces()
    if not _shares(model, stacks[0].layer_paths[: max(depths)]):
        return Pieces()
    some = max(1, TOKENS // (found[0] * call.tokens))
    groups = [
        numbers[start : start + some]
        for depth in sorted(set(depths), reverse=True)
        for numbers in [[number for number, one in enumerate(depths) if one == depth]]
        for start in range(0, len(numbers), some)
    ]
    if len(groups) == 1:
        return Pieces()
    # One dictionary for all pieces of this call: what the first writes, the others read.
    trunk: dict[tuple[str, int], Any] = {}
    choices = tuple(
        replace(
            choice,
            node=Parallel(*(node.children[number] for number in group)),
            reaches=tuple(choice.reaches[number] for number in group),
            trunk=trunk,
        )
        for group in groups
    )
    return Pieces(choices, tuple(number for group in groups for number in group))


def depths_of(attachment: Attachment, reaches: Sequence[Reach]) -> list[int]:
    """Return below how many layers of the first stack each of some rows is the base's: all of them without a delta."""
    stack = attachment.arch.stacks[0] if attachment.arch.stacks else None
    if stack is None or starts_at_root(attachment, reaches):
        return [0] * len(reaches)
    return [max(0, first_layers(attachment, [reach]).get(stack.path, stack.num_layers)) for reach in reaches]


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


def join(outputs: list[Any], children: Sequence[int] | None = None) -> Any:
    """Return the outputs of the pieces as that of the whole: rows behind rows.

    Args:
        outputs: One a piece.
        children: Whose rows stand where, where that is not their order.

    Raises:
        RoutingError: they hold something without rows, which is not the same in all of them.
    """
    first = outputs[0]
    if isinstance(first, Tensor) and first.dim():
        whole = torch.cat(outputs)
        if children is None:
            return whole
        parts = whole.chunk(len(children))
        return torch.cat([parts[children.index(number)] for number in range(len(children))])
    if isinstance(first, dict):
        joined = {key: join([one[key] for one in outputs], children) for key in first}
        return joined if type(first) is dict else type(first)(**joined)
    if isinstance(first, (tuple, list)):
        return type(first)(join(list(part), children) for part in zip(*outputs, strict=True))
    if all(one is first for one in outputs):
        return first
    raise RoutingError(
        "the children of a Parallel returned what cannot be joined",
        where="output of the model",
        got=type(first).__name__,
        allowed="tensors with the batch as their first axis",
        try_="hfadapt.active(model, name), one child after another",
    )
