"""Adding the layer of a `Router` to a model, new or as a folder has it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import CompositionError
from ..errors.arguments import require_switches
from ..errors.names import names_of
from ..routing.composition import Router
from ..runtime.attachment import Attachment, adapted_model, attachment, device_and_dtype, shared_modules
from ..runtime.row_routing import ROUTER, RouterLayer, routers_of
from ..runtime.shards import ADDED, refuse_sharded
from .activate import activate
from .freeze import freeze

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from transformers import PreTrainedModel

__all__ = ["add_router", "describe_routers", "drop_routers", "restore_routers"]


@torch.inference_mode(False)  # as attach
def add_router(
    model: PreTrainedModel,
    node: Router | str | tuple[str, ...] | list[str],
    *,
    train_adapters: bool = False,
    activate_it: bool = True,
) -> int:
    """Add a layer that routes rows to adapters by what they say, and train it alone.

    The layer learns from the loss of the rows that go through it, in a plain Trainer; rows of the batch that have a
    task of their own leave it as it is. ``hfadapt.compose(model, name, node)`` gives it a name for ``task_ids``.

    Args:
        model: An adapted model that reads ``input_ids``.
        node: The adapters: ``Router("a", "b", top_k=2)``, or their names.
        train_adapters: Leave the adapters trainable; by default they are frozen.
        activate_it: Use the router in calls without ``task_ids``.

    Returns:
        How many parameters the layer has.

    Raises:
        AttachError: nothing is attached.
        ConfigError: ``train_adapters`` or ``activate_it`` is neither true nor false.
        CompositionError: an adapter is not attached, there is a router over these adapters, or the model has no input
            embeddings that could be read.
    """
    require_switches(where="add_router", train_adapters=train_adapters, activate_it=activate_it)
    model = adapted_model(model)
    refuse_sharded(model, where="add_router", why=ADDED, try_="add the router first, then fully_shard")
    state = attachment(model)
    if not isinstance(node, Router):
        if not isinstance(node, str | tuple | list):
            allowed = "Router('a', 'b'), or a list of two or more names"
            raise CompositionError(
                "no adapters to route to",
                where="add_router",
                got=repr(node),
                allowed=allowed,
                try_="hfadapt.Router('a', 'b')",
            )
        node = Router(*names_of(node))
    layer = make_router(model, state, node)
    if not train_adapters:
        freeze(model, [str(child) for child in node.children])
    if activate_it:
        activate(model, node)
    return sum(parameter.numel() for parameter in layer.parameters())


def make_router(model: PreTrainedModel, state: Attachment, node: Router) -> RouterLayer:
    """Create the layer of ``node``.

    Raises:
        CompositionError: see `add_router`.
    """
    state.check_attached(node)
    if node.key in dict(routers_of(model)):
        raise CompositionError(
            "there is a router over these adapters",
            where="add_router",
            got=repr(node),
            allowed="one router for the adapters in their order, for every top_k",
            try_="hfadapt.activate(model, node)",
        )
    table = _table(model)
    made = RouterLayer(model, tuple(map(str, node.children)), table.embedding_dim)
    device, dtype = device_and_dtype(table, model, state.autocast_dtype)
    if state.shared is None:
        state.shared = nn.ModuleDict()
        model.add_module("hfadapt_shared", state.shared)
    state.shared[node.key] = nn.ModuleDict()
    shared_modules(model, node.key)[ROUTER] = made.to(device=device, dtype=dtype).train(model.training)
    return made


def _table(model: PreTrainedModel) -> nn.Embedding:
    table: Any = None
    if getattr(model, "main_input_name", "") == "input_ids":
        # transformers raises it of a model whose table it cannot find; what is refused below says so in our words
        with contextlib.suppress(NotImplementedError):
            table = model.get_input_embeddings()
    if isinstance(table, nn.Embedding):
        return table
    raise CompositionError(
        "a router reads the input embeddings of a row's tokens, and this model has none",
        where=f"Router on {type(model).__name__}",
        got=f"a model of {getattr(model, 'main_input_name', 'other inputs')}"
        if table is None
        else f"input embeddings of the type {type(table).__name__}",
        allowed="a model of input_ids with an embedding of tokens",
        try_="hfadapt.Arrow of LoRAs, by which tokens choose at every linear; or task_ids",
    )


def drop_routers(model: PreTrainedModel, state: Attachment, gone: Iterable[str]) -> None:
    """Remove the routers over adapters that are gone."""
    for key, layer in list(routers_of(model)):
        if state.shared is not None and not set(layer.names).isdisjoint(gone):
            del state.shared[key]


def describe_routers(model: nn.Module, names: Iterable[str]) -> list[list[str]]:
    """Return the adapters of each router over adapters among ``names``, for a folder's description."""
    return [list(layer.names) for _, layer in routers_of(model, names)]


def restore_routers(model: PreTrainedModel, data: Mapping[str, Any]) -> None:
    """Make the routers that ``hfadapt_config.json`` names; their weights are read into them afterwards."""
    state = attachment(model)
    for names in data.get("routers", ()):
        make_router(model, state, Router(*names))
