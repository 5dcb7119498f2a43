"""merge: fold an adapter into the base's weights, and take it out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import plugins
from .attaching import attach, detach
from .errors import AttachError, problem
from .state import Attachment, attachment, deltas_of, parameters_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .delta import Delta
    from .method import MethodConfig

__all__ = ["Merged", "merge"]


class Merged:
    """What ``merge`` returns: a model that holds an adapter in its own weights, and the way back.

    Args:
        model: The merged model.
        name: The adapter.
        configs: The adapter's configs.
        tensors: The adapter's parameters.
        originals: The base's weights before the merge, by parameter; empty when they were not kept.
        trains: Whether each parameter of the model was trained before.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        configs: tuple[MethodConfig, ...],
        tensors: dict[str, Tensor],
        originals: dict[str, Tensor],
        trains: dict[str, bool],
    ) -> None:
        self.model = model
        self.name = name
        self.configs = configs
        self.tensors = tensors
        self.originals = originals
        self.trains = trains

    def unmerge(self) -> None:
        """Put the base's weights back bit for bit and attach the adapter again.

        Raises:
            AttachError: the weights from before were not kept (``keep_original=False``).
        """
        if not self.originals:
            raise AttachError(
                problem(
                    f"the base's weights from before merging {self.name!r} were not kept",
                    try_="hfadapt.merge(model, name, keep_original=True), or load the base again",
                )
            )
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for path, weight in self.originals.items():
                parameters[path].copy_(weight)
        attach(self.model, self.configs, self.name, verify=False)
        inside = parameters_of(self.model, self.name)
        with torch.no_grad():
            for key, tensor in self.tensors.items():
                inside[key].copy_(tensor)
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
            base as it is), layers are dropped or shared, or a weight is tied to another module's.
    """
    state = attachment(model)
    name = _only(state, name)
    configs = state.require(name).configs
    _check(model, state, name)
    places = [(path.partition(".hfadapt.")[0], delta) for path, delta in deltas_of(model, name)]
    owners = {id(p): n for n, p in model.named_parameters()}
    changed = {owners[id(w)]: w for leaf, _ in places for w in _own_parameters(model.get_submodule(leaf)).values()}
    originals = {path: weight.detach().clone() for path, weight in changed.items()}
    tensors = {key: p.detach().clone() for key, p in parameters_of(model, name).items()}
    trains = {path: p.requires_grad for path, p in model.named_parameters()}
    try:
        for leaf, delta in places:
            delta.merge(name, model.get_submodule(leaf))
    except BaseException:
        with torch.no_grad():
            for path, weight in changed.items():
                weight.copy_(originals[path])
        raise
    detach(model, name)
    return Merged(model, name, configs, tensors, originals if keep_original else {}, trains)


def _only(state: Attachment, name: str | None) -> str:
    if name is None and len(state.adapters) == 1:
        return next(iter(state.adapters))
    if name is None:
        raise AttachError(problem("several adapters, and none is named", allowed=", ".join(state.adapters)))
    return state.require(name).name


def _own_parameters(leaf: nn.Module) -> dict[str, nn.Parameter]:
    return {key: p for key, p in leaf.named_parameters() if not key.startswith("hfadapt.")}


def _check(model: PreTrainedModel, state: Attachment, name: str) -> None:
    where = f"merge({name!r})"
    for config in state.require(name).configs:
        capabilities = plugins.methods()[config.method].capabilities
        if not capabilities.mergeable:
            why = capabilities.reasons.get("mergeable", "its change is not linear in what one linear reads")
            raise AttachError(problem(f"{config.method} cannot be merged: {why}", where=where))
    others = [n for n in state.adapters if n != name]
    if others:
        raise AttachError(
            problem(
                "other adapters are attached, which were made for the base as it is",
                where=where,
                got=", ".join(others),
                try_=f"hfadapt.detach(model, {others}) first, or merge into a copy of the model",
            )
        )
    if any(state.drop.values()):
        raise AttachError(
            problem(
                "layers are dropped", where=where, got=state.drop, try_="hfadapt.set_adapter_drop(model, None) first"
            )
        )
    for path, delta in deltas_of(model, name):
        _check_place(model, path, delta, where)


def _check_place(model: PreTrainedModel, path: str, delta: Delta, where: str) -> None:
    if delta.site.shared_layer:
        raise AttachError(
            problem(
                "this module serves several depths, each with an adapter of its own",
                where=where,
                got=delta.site.leaf,
                try_="keep the adapter attached",
            )
        )
    leaf = model.get_submodule(delta.site.leaf)
    own = {id(p) for p in _own_parameters(leaf).values()}
    for other_path, other in model.named_modules():
        if other is not leaf and any(id(p) in own for p in other.parameters(recurse=False)):
            raise AttachError(
                problem(
                    "the weight is tied to another module's, which would change too",
                    where=where,
                    got=f"{delta.site.leaf} and {other_path}",
                    try_="keep the adapter attached, or leave this module out of target_modules",
                )
            )
