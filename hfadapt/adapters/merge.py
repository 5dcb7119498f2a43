"""merge: fold an adapter into the base's weights, and take it out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import plugins
from ..errors import AttachError
from ..runtime.attachment import Adapter, Attachment, attachment, copies_of, deltas_of, parameters_of, uncompiled
from ..runtime.shards import refuse_sharded
from ..runtime.watch import require_intact
from .attach import attach
from .detach import detach
from .saved_tensors import require_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..method.delta import Delta

__all__ = ["Merged", "merge"]


class Merged:
    """What ``merge`` returns: a model that holds an adapter in its own weights, and the way back.

    Args:
        model: The merged model.
        adapter: The adapter.
        tensors: The adapter's parameters.
        originals: The base's weights before the merge, by parameter; empty when they were not kept.
        trains: Whether each parameter of the model was trained before.
        autocast: Whether the adapter was kept in float32 on a base of lower precision.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapter: Adapter,
        tensors: dict[str, Tensor],
        originals: dict[str, Tensor],
        trains: dict[str, bool],
        autocast: bool = True,
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.name = adapter.name
        self.configs = adapter.configs
        self.tensors = tensors
        self.originals = originals
        self.trains = trains
        self.autocast = autocast

    def unmerge(self) -> None:
        """Put the base's weights back bit for bit and attach the adapter again.

        Raises:
            AttachError: the weights from before were not kept (``keep_original=False``).
        """
        if not self.originals:
            raise AttachError(
                f"the base's weights from before merging {self.name!r} were not kept",
                where="Merged.unmerge",
                got="keep_original=False",
                allowed="weights that were kept",
                try_="hfadapt.merge(model, name, keep_original=True), or load the base again",
            )
        inside = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for path, weight in self.originals.items():
                inside[path].copy_(weight)
        attach(
            self.model,
            self.configs,
            self.name,
            train_head=bool(self.adapter.heads),
            modules_to_save=self.adapter.modules,
            verify=False,
            autocast_adapter_dtype=self.autocast,
        )
        own = parameters_of(self.model, self.name)
        with torch.no_grad():
            for key, tensor in self.tensors.items():
                own[key].copy_(tensor)
        for path, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.trains.get(path, parameter.requires_grad))
        self.originals = {}


def merge(model: PreTrainedModel, name: str | None = None, *, keep_original: bool = True) -> Merged:
    """Fold an adapter into the base's weights and detach it: the model is a stock one that computes the same.

    Args:
        model: An adapted model.
        name: The adapter; by default the only one there is.
        keep_original: Keep a copy of the weights that change, so that ``unmerge`` restores them bit for bit.

    Returns:
        The way back.

    Raises:
        AttachError: a method of the adapter cannot be merged, other adapters are attached (they were made for the
            base as it is), layers are dropped or shared, a weight is tied to another module's, or the model is sharded.
        CheckpointError: the adapter holds NaN or Inf.
    """
    model = uncompiled(model)
    state = attachment(model)
    refuse_sharded(
        model,
        where="hfadapt.merge",
        why="an update is added to a whole weight",
        try_="hfadapt.save on every process, then hfadapt.load on a base that is whole, and merge there",
    )
    name = _only(state, name)
    _check(model, state, name)
    adapter = state.require(name)
    require_intact(state, [name])
    require_finite(parameters_of(model, name), f"merge({name!r})")
    places = [(path.partition(".hfadapt.")[0], delta) for path, delta in deltas_of(model, name)]
    own = {path: one.state_dict(keep_vars=True) for path, one in copies_of(model, name)}
    owners = {id(p): n for n, p in model.named_parameters()}
    changed = {owners[id(w)]: w for leaf, _ in places for w in _own_parameters(model.get_submodule(leaf)).values()}
    whole = dict(model.named_parameters()) | dict(model.named_buffers())
    changed |= {f"{path}.{key}": whole[f"{path}.{key}"] for path, tensors in own.items() for key in tensors}
    originals = {path: weight.detach().clone() for path, weight in changed.items()}
    tensors = {key: p.detach().clone() for key, p in parameters_of(model, name).items()}
    trains = {path: p.requires_grad for path, p in model.named_parameters()}
    try:
        with torch.no_grad():  # before the deltas, which may sit at such a module
            for path, tensors_of_one in own.items():
                for key, tensor in tensors_of_one.items():
                    whole[f"{path}.{key}"].copy_(tensor)
        for leaf, delta in places:
            delta.merge(name, model.get_submodule(leaf))
    except BaseException:
        with torch.no_grad():
            for path, weight in changed.items():
                weight.copy_(originals[path])
        raise
    detach(model, name)
    return Merged(model, adapter, tensors, originals if keep_original else {}, trains, state.autocast_dtype)


def _only(state: Attachment, name: str | None) -> str:
    if name is None and len(state.adapters) == 1:
        return next(iter(state.adapters))
    if name is None:
        raise AttachError(
            "several adapters, and none is named",
            where="hfadapt.merge",
            got="no name",
            allowed=", ".join(state.adapters),
            try_="hfadapt.merge(model, name)",
        )
    return state.require(name).name


def _own_parameters(leaf: nn.Module) -> dict[str, nn.Parameter]:
    return {key: p for key, p in leaf.named_parameters() if not key.startswith("hfadapt.")}


def _check(model: PreTrainedModel, state: Attachment, name: str) -> None:
    where = f"merge({name!r})"
    for config in state.require(name).configs:
        capabilities = plugins.methods()[config.method].capabilities
        if not capabilities.mergeable:
            why = capabilities.reasons.get("mergeable", "its change is not linear in what one linear reads")
            raise AttachError(
                f"{config.method} cannot be merged: {why}",
                where=where,
                got=config.method,
                allowed="methods that change weights alone",
                try_="keep the adapter attached; hfadapt methods shows which can be merged",
            )
    others = [n for n in state.adapters if n != name]
    if others:
        raise AttachError(
            "other adapters are attached, which were made for the base as it is",
            where=where,
            got=", ".join(others),
            allowed="one adapter, which becomes part of the base",
            try_=f"hfadapt.detach(model, {others}) first, or merge into a copy of the model",
        )
    if any(state.drop.values()):
        raise AttachError(
            "layers are dropped",
            where=where,
            got=state.drop,
            allowed="no dropped layers",
            try_="hfadapt.set_adapter_drop(model, None) first",
        )
    for path, delta in deltas_of(model, name):
        _check_place(model, path, delta, where)
    for path, own in copies_of(model, name):
        _check_copy(model, path, own, where)


def _check_copy(model: PreTrainedModel, path: str, own: nn.Module, where: str) -> None:
    """Raise unless the base's module can hold what an adapter's own copy holds."""
    leaf = model.get_submodule(path)
    here = leaf.state_dict()
    other = [
        f"{path}.{key} {list(tensor.shape)}"
        for key, tensor in own.state_dict().items()
        if key not in here or here[key].shape != tensor.shape
    ]
    if other:
        raise AttachError(
            "the adapter's own module has another shape than the base's",
            where=where,
            got=", ".join(other),
            allowed="a module of the base's shape",
            try_="a base with as many labels (num_labels=...), or keep the adapter attached",
        )
    _check_tied(model, path, where)


def _check_place(model: PreTrainedModel, path: str, delta: Delta, where: str) -> None:
    if delta.site.shared_layer:
        raise AttachError(
            "this module serves several depths, each with an adapter of its own",
            where=where,
            got=delta.site.leaf,
            allowed="modules that run once a forward",
            try_="keep the adapter attached",
        )
    _check_tied(model, delta.site.leaf, where)


def _check_tied(model: PreTrainedModel, path: str, where: str) -> None:
    """Raise when another module would change along."""
    leaf = model.get_submodule(path)
    own = {id(p) for p in _own_parameters(leaf).values()}
    inside = {id(module) for module in leaf.modules()}
    for other_path, other in model.named_modules():
        if id(other) not in inside and any(id(p) in own for p in other.parameters(recurse=False)):
            raise AttachError(
                "the weight is tied to another module's, which would change too",
                where=where,
                got=f"{path} and {other_path}",
                allowed="a weight of one module",
                try_="keep the adapter attached, or leave this module out of target_modules or modules_to_save",
            )
