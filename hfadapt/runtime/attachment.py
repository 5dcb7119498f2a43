"""What is attached to a model: its adapters, their composition, and which parameters are theirs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from ..errors import AttachError, CompositionError, did_you_mean
from ..errors.inside import require_itself
from ..method.delta import Delta
from ..routing.choice import Choice
from ..routing.composition import Fuse, Node, adapter_names, fuse_nodes, router_nodes
from ..routing.routing import Routing
from ..routing.steps import Step, plan
from .slot import Slot

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..architecture import ArchitectureMap
    from ..method.config import MethodConfig

__all__ = [
    "Adapter",
    "Attachment",
    "Prepared",
    "adapted_model",
    "attachment",
    "copies_of",
    "deltas_of",
    "device_and_dtype",
    "find_attachment",
    "parameters_of",
    "shared_modules",
]

_Model = TypeVar("_Model", bound=nn.Module)

Lost = tuple[tuple[str, str, tuple[str, ...]], ...]
"""Places that are gone: path, what became of it, and the adapters that need it (none known: any)."""


class Watched(Protocol):
    """What notices that a place of a delta was replaced or bypassed: `Watch`."""

    lost_before: Lost
    model: Any
    needed: tuple[tuple[str, nn.Module], ...]

    def holds(self) -> bool: ...

    def lost(self) -> Lost: ...

    def look_again(self, attachment: Attachment, names: Collection[str]) -> None: ...

    def told_to_graph(self, names: tuple[str, ...]) -> str: ...


class Waiting(Protocol):
    """What is still to be shown of the adapters, and can be shown in a call of the model's alone: `FirstCalls`."""

    def run(self, routing: Routing | None, args: tuple, kwargs: dict[str, Any], run: Callable[[], Any]) -> Any: ...


class Token:
    """Tells one attachment from another, its own copies among them."""


class Prepared(nn.Module):
    """A shared module that computes something once a forward, before the first layer (a prefix from its MLP)."""

    def prepare(self, routing: Routing) -> Any:
        """Return what the layers need; they find it at ``routing.prepared[(adapter, method)]``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Adapter:
    """A named set of deltas: one config, or several (MAM is prefix tuning plus a parallel adapter).

    Args:
        name: Its name.
        configs: Its configs.
        heads: Paths of the model's head modules of which it has a copy of its own.
        modules: Paths of other modules of which it has one.
    """

    name: str
    configs: tuple[MethodConfig, ...]
    heads: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


@dataclass
class Fusion:
    """AdapterFusion over some adapters.

    Args:
        config: Its config.
        heads: Paths of the model's head modules of which it has a copy of its own.
        kept: For each pruned layer (by path), the adapters that are left.
    """

    config: MethodConfig
    heads: tuple[str, ...] = ()
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class Attachment:
    """The state of an adapted model, kept at ``model._hfadapt``.

    Args:
        arch: The model's architecture map.
        adapters: By name, in the order of their ids.
        compositions: Further routable names and what they stand for.
        fusions: AdapterFusion layers by the node they serve.
        choice: What calls without ``task_ids`` use, outside of a thread's own ``active``.
        rereads_input: The model looks at its input's rows again behind its layers.
        autocast_dtype: What is trained is float32 where the base is of lower precision.
        label_counts: How many outputs an adapter's own head has where the base's has another number.
        drop: AdapterDrop depth by stack path; "" for all stacks.
        inside: A model around this one gives idle parameters their gradient of zero.
        watch: What the hooks rely on; compared at every call.
        told_frozen: It was said that another library froze all of them.
        prove: Shows that every delta of a model fires, and raises where one does not.
        waiting: Runs calls of the model while something is left that only such a call can show.
        original: Facts to restore at ``detach``: ``requires_grad`` by parameter name, attention implementation.
    """

    arch: ArchitectureMap
    adapters: dict[str, Adapter] = field(default_factory=dict)
    compositions: dict[str, Node] = field(default_factory=dict)
    fusions: dict[Fuse, Fusion] = field(default_factory=dict)
    choice: Choice = field(default_factory=Choice)
    rereads_input: bool = False
    autocast_dtype: bool = True
    label_counts: dict[str, int] = field(default_factory=dict)
    drop: dict[str, int] = field(default_factory=dict)
    decoder_paths: tuple[str, ...] = ()
    call_counters: tuple[str, ...] = ()
    original_requires_grad: dict[str, bool] = field(default_factory=dict)
    original_attention: Any = None
    original_chunk_sizes: dict[str, int] = field(default_factory=dict)
    # An object and not a number: a copy of the model has another one, and so has a model of another process.
    token: object = field(default_factory=Token)
    inside: bool = False
    shared: nn.ModuleDict | None = None
    told_frozen: bool = False
    steps: tuple[Step, ...] = ()
    watch: Watched | None = None
    prove: Callable[[Any], Any] | None = None
    waiting: Waiting | None = None

    @property
    def active(self) -> Any:
        """The name, list or composition that calls without ``task_ids`` use, or None."""
        return self.choice.shown

    @active.setter
    def active(self, name: str | None) -> None:
        self.choice = Choice(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters; a position here is the task id that a call may give."""
        return tuple(self.adapters)

    @property
    def head_paths(self) -> tuple[str, ...]:
        """Paths of the head modules of which an adapter has a copy of its own."""
        return tuple(dict.fromkeys(path for adapter in self.adapters.values() for path in adapter.heads))

    @property
    def routable(self) -> tuple[str, ...]:
        """Every name that ``task_ids`` may hold: adapters, then named compositions."""
        return (*self.adapters, *self.compositions)

    def require(self, name: str) -> Adapter:
        """Return the adapter ``name``.

        Raises:
            AttachError: there is none of that name.
        """
        if not isinstance(name, str) or name not in self.adapters:
            raise AttachError(
                f"no adapter {name!r} on this model",
                where="adapters",
                got=repr(name),
                allowed=", ".join(self.adapters) or "none is attached",
                try_=did_you_mean(str(name), self.adapters) or "hfadapt.attach(model, method, name) first",
            )
        return self.adapters[name]

    def check_attached(self, node: Node) -> None:
        """Raise ``CompositionError`` unless every adapter in ``node`` is attached."""
        missing = [n for n in adapter_names(node) if n not in self.adapters]
        if missing:
            raise CompositionError(
                "the composition names adapters that are not attached",
                where="composition",
                got=", ".join(missing),
                allowed=", ".join(self.adapters),
                try_=did_you_mean(missing[0], self.adapters) or "hfadapt.attach(model, method, name) first",
            )

    def check(self, node: Node) -> None:
        """Raise ``CompositionError`` unless every adapter in ``node`` is attached and may be composed so."""
        self.check_attached(node)
        for fuse in fuse_nodes(node):
            if fuse not in self.fusions:
                raise CompositionError(
                    "there is no fusion layer for this composition",
                    where="composition",
                    got=repr(fuse),
                    allowed=", ".join(map(repr, self.fusions)) or "none was added",
                    try_=f"hfadapt.add_fusion(model, {fuse!r})",
                )
        for router in router_nodes(node):
            if self.shared is None or router.key not in self.shared:
                raise CompositionError(
                    "there is no router over these adapters in this order",
                    where="composition",
                    got=repr(router),
                    allowed="a router that was added",
                    try_=f"hfadapt.add_router(model, {router!r})",
                )

    def choose_default(self) -> None:
        """Make the only adapter active; with several of them nothing is, unless the user said so."""
        if not self.choice.made:
            self.choice = Choice(next(iter(self.adapters)) if len(self.adapters) == 1 else None)

    def changed(self) -> None:
        """Work out the steps anew after adapters or compositions changed."""
        # Here and not at the first call, which torch.compile may be tracing.
        self.steps = plan([*self.adapters, *self.compositions.values()])

    def prepare(self, routing: Routing) -> None:
        """Let the shared modules of the adapters in use compute what every layer needs, once and before the layers.

        It happens here and not in the first layer that asks, because a checkpointed layer is run twice.
        """
        if self.shared is None:
            return
        for name in routing.used_names():
            for key, module in _by_method(self.shared, name).items():
                if isinstance(module, Prepared):
                    draws = routing.state.draws
                    with nullcontext() if draws is None else draws.at(f"shared {name} {key}"):
                        routing.state.prepared[(name, key)] = module.prepare(routing)


def find_attachment(model: nn.Module) -> Attachment | None:
    """Return what is attached to ``model`` (also to the model inside what ``torch.compile`` returned), or None."""
    return uncompiled(model).__dict__.get("_hfadapt")


def uncompiled(model: _Model) -> _Model:
    """Return the model that stands inside what ``torch.compile(model)`` returned, else ``model`` itself.

    Raises:
        AttachError: it is no model.
    """
    if not isinstance(model, nn.Module):
        require_itself(model, where=type(model).__name__)
        raise AttachError(
            "not a model",
            where="hfadapt",
            got=repr(model)[:80],
            allowed="a PreTrainedModel, or any nn.Module",
            try_="AutoModel.from_pretrained(name), and that model",
        )
    # read from the dictionary: the attribute would be looked up in the model inside
    return model.__dict__.get("_modules", {}).get("_orig_mod", model)


def shared_modules(model: nn.Module, name: str) -> nn.ModuleDict:
    """Return what the layers of the adapter ``name`` share, by method; an empty dictionary when nothing is shared."""
    shared = getattr(model, "hfadapt_shared", None)
    return _by_method(shared, name) if isinstance(shared, nn.ModuleDict) else nn.ModuleDict()


def _by_method(shared: nn.ModuleDict, name: str) -> nn.ModuleDict:
    found = shared[name] if name in shared else nn.ModuleDict()
    assert isinstance(found, nn.ModuleDict)
    return found


def attachment(model: nn.Module) -> Attachment:
    """Return what is attached to ``model``.

    Raises:
        AttachError: nothing is.
    """
    found = find_attachment(model)
    if found is None:
        require_itself(model, where=type(model).__name__)
        raise AttachError(
            "no adapter is attached to this model",
            where=type(model).__name__,
            got="a model as it came",
            allowed="a model that hfadapt.attach or hfadapt.load adapted",
            try_="hfadapt.attach(model, 'lora') first, on the same object",
        )
    return found


def adapted_model(model: _Model) -> _Model:
    """Return the model that was adapted: the base of a ``MultiTaskModel``, else ``model`` itself, never compiled."""
    model = uncompiled(model)
    if "_hfadapt" in model.__dict__ and "_hfadapt_of" not in model.__dict__:
        return model.base  # type: ignore[return-value]
    return model


def slots_of(model: nn.Module) -> Iterator[tuple[str, Slot]]:
    """Yield the path of each adapted module and its slot."""
    for path, module in model.named_modules():
        if isinstance(module, Slot):
            yield path.removesuffix(".hfadapt"), module


def deltas_of(model: nn.Module, name: str | None = None) -> Iterator[tuple[str, Delta]]:
    """Yield the path and the delta of every place that has parameters of the adapter ``name`` (or of any)."""
    for path, slot in slots_of(model):
        for key, delta in slot.deltas.items():
            assert isinstance(delta, Delta)
            if name is None or name in delta.names:
                yield f"{path}.hfadapt.deltas.{key}", delta


def parameters_of(model: PreTrainedModel, name: str, own_modules: bool = True) -> Mapping[str, nn.Parameter]:
    """Return the parameters of the adapter ``name`` by their full name; shared ones once.

    Args:
        model: An adapted model.
        name: The adapter.
        own_modules: With those of its own copies of modules of the base, such as its head.

    Raises:
        AttachError: nothing is attached, or there is no adapter of that name.
    """
    attachment(model).require(name)
    found: dict[str, nn.Parameter] = {}
    for path, delta in deltas_of(model, name):
        for key, parameter in delta.adapters[name].named_parameters():
            found[f"{path}.adapters.{name}.{key}"] = parameter
    for key, parameter in shared_modules(model, name).named_parameters():
        found[f"hfadapt_shared.{name}.{key}"] = parameter
    for path, own in copies_of(model, name) if own_modules else ():
        for key, parameter in own.named_parameters():
            found[f"{path}.hfadapt.copies.{name}.{key}"] = parameter
    return found


def copies_of(model: nn.Module, owner: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path of each module of the base that ``owner`` has a copy of, and the copy.

    Args:
        model: An adapted model.
        owner: An adapter, or the ``key`` of a ``Fuse``.
    """
    for path, slot in slots_of(model):
        if owner in slot.copies:
            yield path, slot.copies[owner]


def device_and_dtype(module: nn.Module, model: nn.Module, autocast: bool) -> tuple[torch.device, torch.dtype]:
    """Return where parameters that are made for ``module`` belong, and in which dtype.

    Args:
        module: A leaf of the base.
        model: The base, asked where ``module`` has no parameters of its own.
        autocast: float32 in place of a dtype of lower precision.
    """
    parameter = _first_of_the_base(module)
    parameter = _first_of_the_base(model) if parameter is None else parameter
    if parameter is None:
        return torch.device("cpu"), torch.get_default_dtype()
    narrow = autocast and parameter.dtype.itemsize < torch.float32.itemsize
    return parameter.device, torch.float32 if narrow else parameter.dtype


def _first_of_the_base(module: nn.Module) -> nn.Parameter | None:
    """The first floating-point parameter that is no adapter's, of which there may be a thousand."""
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter
    for name, child in module.named_children():
        if not name.startswith("hfadapt") and (found := _first_of_the_base(child)) is not None:
            return found
    return None
