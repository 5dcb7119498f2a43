"""Notices when what hooks sit on was replaced, deleted or bypassed after adapters were attached.

Hooks follow modules, not names: a head that ``resize_token_embeddings`` replaced, a layer that was cut off or a fused
``forward`` in place of a stock one leaves a delta that is trained and saved and does nothing. ``attach`` proves that
every delta fires; what that proof relied on is kept here and compared at every call of the model, in one loop over
identities. Where something changed and every slot is still there, the proof is made anew; else the call is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ..errors import AttachError
from ..routing.routing import Routing
from .leaf_hooks import Hook
from .slot import Slot
from .stand_ins import follow, runs_the_same

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..method.delta import Delta
    from .attachment import Attachment, Lost

__all__ = ["Watch", "require_intact", "require_intact_in_graph", "watch"]

_SHOWN = 3


class Watch:
    """What the hooks of an adapted model rely on, as it was when it was proved that they run.

    It holds modules, so that a copy of the model has a watch over its own.

    Args:
        model: The adapted model.
        lost: Places that were lost before, to adapters that are still there.
    """

    def __init__(self, model: PreTrainedModel, lost: Lost = ()) -> None:
        self.model = model
        self.lost_before = lost
        needed = {path: module for path, module in model.named_modules() if _is_ours(module)}
        paths = {path[: at + 1] for path in needed for at in range(len(path)) if path[at + 1 : at + 2] in ("", ".")}
        every = dict(model.named_modules(remove_duplicate=False))
        inside = {path: every[path] for path in sorted(paths)}
        self.needed: tuple[tuple[str, nn.Module], ...] = tuple(needed.items())
        self.modules = tuple(
            (every[path.rpartition(".")[0]], path.rpartition(".")[2], module, module.__dict__.get("forward"))
            for path, module in inside.items()
        )
        self.inputs = tuple((m, key) for m in needed.values() for key, h in m._forward_pre_hooks.items() if _ours(h))
        self.outputs = tuple((m, key) for m in needed.values() for key, h in m._forward_hooks.items() if _ours(h))
        self.configs = tuple(_attention_configs(model, needed))
        self._find_kinds()

    def _find_kinds(self) -> None:
        self.classes = tuple((module, type(module)) for _, _, module, _ in self.modules)
        self.kinds = tuple((kind, kind.forward) for kind in {kind: None for _, kind in self.classes})

    def __getstate__(self) -> dict[str, Any]:
        # Functions of classes need not be picklable, and are those of the process that reads the pickle.
        return {key: value for key, value in self.__dict__.items() if key not in ("kinds", "classes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._find_kinds()

    def holds(self) -> bool:
        """Say whether everything is as it was; if so, no function of Python's is called but a config's property."""
        for parent, name, module, forward in self.modules:
            if parent._modules.get(name) is not module:
                return False
            if module.__dict__.get("forward") is not forward and not runs_the_same(module, forward):
                return False
        for module, kind in self.classes:
            if type(module) is not kind and type(module).forward is not kind.forward:
                return False
        for module, key in self.inputs:
            if key not in module._forward_pre_hooks:
                return False
        for module, key in self.outputs:
            if key not in module._forward_hooks:
                return False
        for kind, forward in self.kinds:
            if kind.forward is not forward:
                return False
        for config, implementation in self.configs:
            if config._attn_implementation != implementation:
                return False
        return not self.lost_before

    @torch.compiler.assume_constant_result
    def told_to_graph(self, names: tuple[str, ...]) -> str:
        """Say what is wrong when ``torch.compile`` traces a call, or "".

        A change that matters breaks a guard of the graph, and the model is traced anew. This runs then, and not in the
        graph: what became of attention is followed as in any other call, but no proof can be made inside of a trace.

        Args:
            names: The adapters that are about to run.
        """
        if self.holds():
            return ""
        self._follow_forwards()
        try:
            self._follow_attention(self.model.__dict__["_hfadapt"], names)
        except AttachError as error:
            return str(error)
        theirs = [(path, why) for path, why, who in self.lost() if not who or set(who) & set(names)]
        if theirs:
            return str(_lost(self.model, theirs))
        if self.holds():
            return ""
        return (
            "modules that adapters rely on were changed after the model was compiled; try: one call of the model "
            "itself, which proves anew that every adapter runs, and then torch.compile"
        )

    def look_again(self, attachment: Attachment, names: Collection[str]) -> None:
        """Put right what can be, after something changed, and prove the rest anew.

        Args:
            attachment: The adapters of the model.
            names: Those that are about to run.

        Raises:
            AttachError: a place of theirs is gone, or would not be run.
        """
        self._follow_forwards()
        self._follow_attention(attachment, names)
        lost = self.lost()
        theirs = [(path, why) for path, why, who in lost if not who or set(who) & set(names)]
        if theirs:
            raise _lost(self.model, theirs)
        if lost or attachment.prove is None:
            if not lost:
                attachment.watch = Watch(self.model)
            return
        attachment.watch = None  # the proof is a call of the model
        try:
            attachment.prove(self.model)
        except BaseException:
            attachment.watch = self
            raise
        attachment.watch = Watch(self.model)

    def lost(self) -> Lost:
        """Return the places that are no longer there."""
        now = {id(module) for module in self.model.modules()}
        found = list(self.lost_before)
        hooks = {id(m) for m, key in self.inputs if key not in m._forward_pre_hooks}
        hooks |= {id(m) for m, key in self.outputs if key not in m._forward_hooks}
        for path, module in self.needed:
            if id(module) not in now:
                found.append((path, _what_became_of(self.model, path, module), _adapters_at(module)))
            elif id(module) in hooks:
                found.append((path, "its hooks were removed", _adapters_at(module)))
        return tuple(found)

    def _follow_forwards(self) -> None:
        for _, _, module, forward in self.modules:
            if module.__dict__.get("forward") is not forward:
                follow(module, forward)

    def _follow_attention(self, attachment: Attachment, names: Collection[str]) -> None:
        changed = [config for config, implementation in self.configs if config._attn_implementation != implementation]
        inside = {n for _, m in self.needed if isinstance(m, Slot) for d in m.side("attention") for n in d.names}
        if changed and inside & set(names):
            from . import attention

            chosen = attention.follow(changed, type(self.model).__name__)
            for config, implementation in zip(changed, chosen, strict=True):
                if config is self.model.config:
                    attachment.original_attention = implementation
            self.configs = tuple((config, config._attn_implementation) for config, _ in self.configs)


def _ours(hook: Any) -> bool:
    return isinstance(hook, Hook)


def _is_ours(module: nn.Module) -> bool:
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return isinstance(module, Slot) or any(map(_ours, hooks))


def _attention_configs(model: PreTrainedModel, needed: Mapping[str, nn.Module]) -> Iterator[tuple[Any, str]]:
    """Yield the configs that say which attention function the adapted attentions call."""
    found: dict[int, Any] = {}
    for path, slot in needed.items():
        if not isinstance(slot, Slot) or not slot.side("attention"):
            continue
        parts = path.split(".")
        above = (model.get_submodule(".".join(parts[:length])) for length in range(len(parts) - 1, -1, -1))
        for config in (next((m.config for m in above if hasattr(m, "config")), None), model.config):
            if config is not None:
                found[id(config)] = config
    for config in found.values():
        yield config, config._attn_implementation


def _slot_at(module: nn.Module) -> Slot | None:
    slot = module if isinstance(module, Slot) else getattr(module, "hfadapt", None)
    return slot if isinstance(slot, Slot) else None


def _adapters_at(module: nn.Module) -> tuple[str, ...]:
    """The adapters with parameters at a place; none are known of a module that others only read."""
    slot = _slot_at(module)
    if slot is None:
        return ()
    deltas = cast("Iterable[Delta]", slot.deltas.values())  # which Slot makes, and a ModuleDict cannot say
    return tuple(dict.fromkeys([*(n for d in deltas for n in d.names), *_with_copies(slot)]))


def _with_copies(slot: Slot) -> list[str]:
    """The adapters with a copy of the slot's module; those of a fusion layer stand for it."""
    return [name for owner in slot.copies for name in owner.split(",")]


def _what_became_of(model: nn.Module, path: str, module: nn.Module) -> str:
    if path.rpartition(".")[2] == "hfadapt":
        path = path.rpartition(".")[0]
    slot = _slot_at(module)
    owners = ", ".join(dict.fromkeys(_with_copies(slot))) if slot is not None else ""
    held = f", and the old one held the trained copy of {owners}" if owners else ""
    try:
        return f"a new {type(model.get_submodule(path)).__name__} stands there{held}"
    except AttributeError:
        return f"nothing stands there{held}"


def _lost(model: nn.Module, places: list[tuple[str, str]]) -> AttachError:
    leaves = dict((path.removesuffix(".hfadapt"), why) for path, why in places)
    shown = ", ".join(f"{path} ({why})" for path, why in list(leaves.items())[:_SHOWN])
    more = f" and {len(leaves) - _SHOWN} more" if len(leaves) > _SHOWN else ""
    no_head = "; attach(..., train_head=False) gives no head to adapters" if "trained copy" in shown else ""
    return AttachError(
        "modules that adapters sit on are no longer in the model, so that the adapters would do nothing there",
        where=type(model).__name__,
        got=shown + more,
        allowed="the modules that were there when the adapters were attached",
        try_="put them back; or change the model first (resize, quantise, replace) and attach or load then" + no_head,
    )


def watch(
    model: PreTrainedModel, attachment: Attachment, lost: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
) -> None:
    """Take what is there now as what must stay, save for places that were lost to adapters that are still there."""
    still = tuple((path, why, who) for path, why, who in lost if not who or set(who) & set(attachment.names))
    attachment.watch = Watch(model, still)


def require_intact_in_graph(attachment: Attachment, routing: Routing) -> None:
    """As `require_intact`, of a call that ``torch.compile`` traces."""
    if attachment.watch is not None:
        wrong = attachment.watch.told_to_graph(routing.used_names())
        if wrong:
            raise AttachError(wrong)


def require_intact(attachment: Attachment, users: Routing | Collection[str]) -> None:
    """Go on only where the places of some adapters are still there.

    Args:
        attachment: The adapters of the model.
        users: The routing of the call that is about to run, or the adapters that are about to be saved.

    Raises:
        AttachError: a place is gone, or would not be run.
    """
    if attachment.watch is not None and not attachment.watch.holds():
        attachment.watch.look_again(attachment, users.used_names() if isinstance(users, Routing) else users)
