"""attach: putting adapters on a stock model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import plugins
from ..errors import AttachError
from ..errors.arguments import require_switches
from ..errors.inside import require_itself
from ..errors.limits import require_seed
from ..errors.names import names_of
from ..method.config import MethodConfig
from ..method.delta import check_adapter_name
from ..method.method import Method, MethodPreset, Place, expand
from ..runtime.attachment import Adapter, Attachment, device_and_dtype, find_attachment, parameters_of, shared_modules
from ..runtime.fused_norm import fuse_norm
from ..runtime.inner_convolution import change_convolution
from ..runtime.leaf_hooks import InputHook, OutputHook, TapInput, TapOutput, add_hook
from ..runtime.numbering import change_numbers
from ..runtime.parallel_hooks import count_calls
from ..runtime.shards import ADDED, refuse_sharded
from ..runtime.slot import Slot, slot_of
from ..runtime.updated_forward import update_weights
from ..runtime.watch import require_intact, watch
from . import edits
from .alone import refuse_adapted_parts
from .delta_proof import check_place
from .detach import detach
from .first_calls import wait_for_calls
from .freeze import freeze_base as freeze_all
from .freeze import head_modules
from .mapping import find_map
from .own_copies import add_copies, find_modules
from .restore import all_or_nothing
from .uncollected import uncollected
from .verify import prove

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..architecture import ArchitectureMap

__all__ = ["Handle", "attach", "check_model"]


class Handle:
    """What ``attach`` returns: the adapters it made, and their undo."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        self.model = model
        self.names = names

    def detach(self) -> None:
        """Take these adapters off again; the last ones to go leave the model bit for bit as it was."""
        detach(self.model, self.names)

    def num_parameters(self) -> int:
        """Return how many parameters these adapters have; shared ones count once."""
        seen = {id(p): p for name in self.names for p in parameters_of(self.model, name).values()}
        return sum(p.numel() for p in seen.values())

    def __repr__(self) -> str:
        state = find_attachment(self.model)
        if state is None or any(name not in state.names for name in self.names):
            return f"Handle({', '.join(self.names)}: detached)"
        base = sum(p.numel() for p in self.model.parameters()) - self.num_parameters()
        n = self.num_parameters()
        return f"Handle({', '.join(self.names)}: {n:,} parameters, {n / max(base, 1):.2%} of the base)"


# A tensor made in inference mode cannot be trained, not even later.
@torch.inference_mode(False)
def attach(
    model: PreTrainedModel,
    method: str | MethodConfig | Iterable[Any] | Mapping[str, Any],
    name: str = "default",
    *,
    names: str | Iterable[str] | None = None,
    freeze_base: bool = True,
    train_head: bool | None = None,
    modules_to_save: str | Iterable[str] = (),
    verify: bool = True,
    arch: ArchitectureMap | None = None,
    seed: int | None = None,
    autocast_adapter_dtype: bool | None = None,
) -> Handle:
    """Add adapters to a stock model, in place.

    Args:
        model: A transformers model; its class, its parameters' names and its ``forward`` stay as they are.
        method: A registered name, a method config, or a tuple of configs that make one adapter together; the empty
            tuple for an adapter that is ``modules_to_save`` alone (a head, or norms: LN tuning).
        name: Name of the adapter.
        names: Several names, one adapter each with parameters of its own (one a task); in place of ``name``.
        freeze_base: Stop training the base, its head included.
        train_head: Give each adapter a copy of the model's head to train, which its rows go through; by default when
            the base is frozen and the head is a task head and not a language-model head. The model's own head stays
            as it is, for calls without adapters.
        modules_to_save: Further modules of which each adapter trains and saves a copy, by path or last part of it
            (``"embeddings"``, ``"lm_head"``), as peft's.
        verify: Run one small forward pass that counts that every slot and every copy fires. Where no input can be made
            up with which the model runs, its first call counts them.
        arch: The model's map, made by hand or by ``hfadapt.probe(model, inputs=...)``; by default it is looked up by
            the model's type, or found by a probe where a method needs one.
        seed: Seed of the initial weights; by default torch's current state.
        autocast_adapter_dtype: Keep what is trained in float32 on a base of lower precision, and cast what it reads and
            returns: in bfloat16 most steps of an optimizer are smaller than half the gap to the next number, and do
            nothing. False for the base's dtype. By default what the adapters that are there have, and True for the
            first.

    Returns:
        A handle whose ``detach()`` undoes this call.

    Raises:
        AttachError: the method does not fit the model, a name is taken, no module is called as ``modules_to_save``
            says, the model was compiled before, parts of it are adapted as parts of another model, or its adapters
            have another dtype than ``autocast_adapter_dtype`` asks for.
        ArchitectureError: a method needs a map, and the model's structure cannot be mapped or is another one than
            ``arch`` says.
    """
    wanted = (name,) if names is None else names_of(names)
    modules_to_save = names_of(modules_to_save)
    require_seed(seed, where="attach", error=AttachError)
    given = {"train_head": train_head, "autocast_adapter_dtype": autocast_adapter_dtype}
    given = {name: value for name, value in given.items() if value is not None}
    require_switches(where="attach", error=AttachError, freeze_base=freeze_base, verify=verify, **given)
    alone = isinstance(method, (tuple, list)) and not method and bool(modules_to_save or train_head)
    configs = () if alone else expand(method)
    check_model(model)
    state = find_attachment(model)
    for i, one in enumerate(wanted):
        check_adapter_name(one)
        if one in wanted[:i] or (state is not None and one in state.routable):
            raise AttachError(
                "an adapter of that name exists",
                where="attach",
                got=one,
                allowed="names that the model has not, each once",
                try_="choose another name, or detach(model, name) first",
            )
    if not wanted:
        raise AttachError(
            "no name given",
            where="attach",
            got="names=()",
            allowed="one or more adapter names",
            try_="names=['a']",
        )
    if state is None:
        refuse_adapted_parts(model)
    else:
        _check_dtype(state, autocast_adapter_dtype)
        require_intact(state, state.names)
    found = find_map(model, state, [(_method(config), config) for config in configs], arch)
    with all_or_nothing(model):
        with uncollected():
            if state is None:
                state = Attachment(found)
                edits.begin(model, state)
                state.autocast_dtype = autocast_adapter_dtype is not False
            elif found is not state.arch:
                edits.change_map(model, state, found)
            placed = [
                (config, _method(config), list(_method(config).place(config, state.arch, model))) for config in configs
            ]
            for config, found, places in placed:
                if not places:
                    raise AttachError(
                        "the method changes nothing in this model",
                        where=found.name,
                        got=config,
                        allowed="a config that changes something",
                        try_="hfadapt inspect MODEL shows the modules that target_modules may name",
                    )
                for place in places:
                    check_place(place, found.name)
                    _check_backward(model, place)
            trains_head = freeze_base if train_head is None else train_head
            heads, modules = _to_copy(model, trains_head, modules_to_save)
            with _seeded(seed):
                for one in wanted:
                    state.adapters[one] = Adapter(one, configs)
                    for config, found, places in placed:
                        _add(model, state, one, config, found, places)
            for one in wanted:  # behind the deltas of all, which may sit inside
                add_copies(model, state, one, heads, modules)
            state.changed()
            if freeze_base:
                freeze_all(model)
            state.choose_default()
            watch(model, state)
            # A change of the model later on is met as the attaching was, with a proof or on trust.
            state.prove = prove if verify else state.prove
            wait_for_calls(model)
        if verify:
            prove(model, wanted)
    return Handle(model, wanted)


def _to_copy(
    model: PreTrainedModel, train_head: bool, modules_to_save: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths of the head modules and of the other modules of which an adapter gets a copy."""
    named, known = find_modules(model, modules_to_save), head_modules(model)
    heads = tuple(path for path in known if train_head or path in named)
    return heads, tuple(path for path in named if not any(f"{path}.".startswith(f"{head}.") for head in heads))


def check_model(model: PreTrainedModel) -> None:
    """Raise where nothing can be attached.

    Raises:
        AttachError: the model is compiled or sharded, or is none.
    """
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise AttachError(
            "the model is compiled, and hooks added to a compiled model are ignored silently",
            where=type(model).__name__,
            got="a compiled model",
            allowed="a model that was not compiled yet",
            try_="attach first, then torch.compile; or torch._dynamo.reset() and a fresh model",
        )
    require_itself(model, where="attach")
    refuse_sharded(model, where="attach", why=ADDED, try_="attach first, then fully_shard, or Trainer with FSDP")
    if any(
        kind.__name__ == "MultiTaskModel" and kind.__module__.startswith("hfadapt.") for kind in type(model).__mro__
    ):
        raise AttachError(
            "the adapters of a MultiTaskModel are its tasks', and others sit on its base",
            where="attach",
            got=type(model).__name__,
            allowed="model.base, a PreTrainedModel",
            try_="hfadapt.attach(model.base, ...); or model.add_task(folder), for a task that was trained apart",
        )
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise AttachError(
            "not a model with a config",
            where="attach",
            got=type(model).__name__,
            allowed="a PreTrainedModel, or any nn.Module with an attribute config",
            try_="AutoModel.from_pretrained(name), and that model",
        )


def _check_backward(model: nn.Module, place: Place) -> None:
    """Raise where a module back-propagates by running again what is in it, outside the call that says which adapter.

    Such a layer (Reformer's) hands on no gradient to a delta in it, and says nothing of it.
    """
    module = model
    for name in place.site.leaf.split("."):
        module = module.get_submodule(name)
        if callable(getattr(module, "backward_pass", None)):
            raise AttachError(
                "a layer runs again in back-propagation by itself, where an adapter in it gets no gradient",
                where=place.site.leaf,
                got=f"{type(module).__name__}.backward_pass",
                allowed="modules outside such layers",
                try_="target_modules outside these layers, heads on the frozen model, or another model",
            )


def _method(config: MethodConfig) -> Method:
    found = plugins.methods()[config.method]
    assert not isinstance(found, MethodPreset)
    return found


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _check_dtype(state: Attachment, autocast_adapter_dtype: bool | None) -> None:
    """Raise when an adapter is to have another dtype than those it would share batches with."""
    if autocast_adapter_dtype is None or autocast_adapter_dtype == state.autocast_dtype:
        return
    raise AttachError(
        "the adapters of a model have one dtype",
        where=f"attached: {', '.join(state.names)}",
        got=f"autocast_adapter_dtype={autocast_adapter_dtype}",
        allowed=f"autocast_adapter_dtype={state.autocast_dtype}, as the first was attached with",
        try_="leave it out, or detach the others first",
    )


def _add(
    model: PreTrainedModel, state: Attachment, name: str, config: MethodConfig, method: Method, places: list[Place]
) -> None:
    """Create one adapter's parameters at every place of one method."""
    shared = method.shared(config, state.arch, model)
    if shared is not None:
        _one_shared(model, name, method)
        if state.shared is None:
            state.shared = nn.ModuleDict()
            model.add_module("hfadapt_shared", state.shared)
        device, dtype = device_and_dtype(model.get_submodule(places[0].site.leaf), model, state.autocast_dtype)
        if name not in state.shared:
            state.shared[name] = nn.ModuleDict()
        shared_modules(model, name)[method.name] = shared.to(device=device, dtype=dtype).train(model.training)
    for place in places:
        leaf = model.get_submodule(place.site.leaf)
        if not hasattr(leaf, "hfadapt"):
            leaf.add_module("hfadapt", Slot())
        delta = slot_of(leaf).delta(place, method.name)
        if name in delta.names:
            raise AttachError(
                f"two configs of adapter {name!r} want the same place",
                where=f"{method.name} at {place.site.leaf}",
                got="two configs of one method",
                allowed="one config a place",
                try_="two adapters, and hfadapt.Stack of them",
            )
        device, dtype = device_and_dtype(leaf, model, state.autocast_dtype)
        delta.add(name, config, shared, device, dtype)
        # The others are as the model is already, and of a thousand nobody wants to be asked a thousand times.
        (delta if len(delta.names) == 1 else delta.adapters[name]).train(leaf.training)
        _connect(model, state, place)
        if place.site.side == "input":
            fuse_norm(leaf, delta)


def _one_shared(model: PreTrainedModel, name: str, method: Method) -> None:
    """Raise when the adapter has a config of this method already: the layers of both would share one set."""
    if method.name in shared_modules(model, name):
        raise AttachError(
            f"two configs of adapter {name!r} share parameters across layers under one name",
            where=method.name,
            got=f"a second config of {method.name} whose layers share parameters",
            allowed=f"one such config of {method.name} an adapter",
            try_="one config for all its layers; share=False or reparametrization='flat', which share nothing; "
            "or two adapters and hfadapt.Stack of them",
        )


def _connect(model: PreTrainedModel, state: Attachment, place: Place) -> None:
    """Register the hooks that one place needs."""
    site = place.site
    leaf = model.get_submodule(site.leaf)
    if site.side == "attention":
        from ..runtime import attention

        before = attention.enable(model)
        if state.original_attention is None:
            state.original_attention = before
    elif site.side == "numbers":
        change_numbers(leaf)
    elif site.side == "weights":
        update_weights(leaf, site.leaf)
    elif site.side == "convolution":
        change_convolution(leaf, site.leaf)
    else:
        add_hook(leaf, OutputHook() if site.side == "output" else InputHook())
    if site.source is not None:
        tap = site.source
        edits.stop_chunking(model, state, site)
        add_hook(model.get_submodule(tap.leaf), (TapInput if tap.side == "input" else TapOutput)(tap.key))
    if site.shared_layer:
        count_calls(model, state, site.shared_layer)
