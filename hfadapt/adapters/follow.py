"""One call of an adapted model, slot by slot: the data of ``hfadapt explain``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hfadapt_kernels.backend import observe

from ..errors import AttachError
from ..method.delta import Delta
from ..runtime.attachment import attachment, copies_of, slots_of
from ..runtime.slot import fused_node

__all__ = ["CallReport", "SlotCall", "follow"]


@dataclass(frozen=True)
class SlotCall:
    """What one slot did to the tensor that came through.

    Attributes:
        module: The module of the base at which the slot sits.
        slot: What it changes there: ``ffn_output``, ``attention_core``, ...; "own copy" where a copy of the module ran,
            "fusion" where a layer attended over several adapters.
        method: Whose delta it is; for a copy and a fusion the class that ran.
        adapters: Those that rows of this call used.
        ops: The op of each kernel that ran, in order, with the backend that was chosen; PyTorch's functions are none.
        shape: Of the tensor that the slot was given, as the slot sees it.
        change: How much of the tensor the slot changed, as ``|out - in| / |in|``; None where the two cannot be
            subtracted (attention whose output does not exist yet, another width).
    """

    module: str
    slot: str
    method: str
    adapters: tuple[str, ...]
    ops: tuple[tuple[str, str], ...]
    shape: tuple[int, ...]
    change: float | None


@dataclass(frozen=True)
class CallReport:
    """Everything that ``hfadapt explain`` shows.

    Attributes:
        slots: In the order in which the tensor reached them.
        silent: Slots that hold parameters of these adapters and did not run in this call.
        base_ops: Ops that ran outside of slots, packed linears of the base above all, with backend and count.
    """

    slots: tuple[SlotCall, ...]
    silent: tuple[str, ...]
    base_ops: tuple[tuple[str, str, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return asdict(self)


@dataclass
class _Open:
    """A slot that is running."""

    given: Tensor | None
    ops: list[tuple[str, str]] = field(default_factory=list)
    adapters: tuple[str, ...] = ()


class _Follower:
    def __init__(self) -> None:
        self.done: list[SlotCall] = []
        self.open: list[_Open] = []
        self.base: dict[tuple[str, str], int] = {}
        self.ran: set[int] = set()

    def op(self, name: str, backend: str) -> None:
        if self.open:
            self.open[-1].ops.append((name, backend))
        else:
            self.base[name, backend] = self.base.get((name, backend), 0) + 1

    def begins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        first = args[0] if args else None
        given = first if isinstance(first, Tensor) else getattr(first, "query", None)
        self.open.append(_Open(given, adapters=_adapters_in(args)))

    def ends(self, place: tuple[str, str, str], owner: str | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            one = self.open.pop()
            self.ran.add(id(module))
            shape = () if one.given is None else tuple(one.given.shape)
            names = one.adapters or ((owner,) if owner else ())
            self.done.append(SlotCall(*place, names, tuple(one.ops), shape, _change(one.given, output)))

        return hook


def follow(model: nn.Module, call: Callable[[], Any], names: tuple[str, ...]) -> CallReport:
    """Make one call and note each slot that it comes through.

    Args:
        model: An adapted model; of a ``MultiTaskModel`` its ``base``.
        call: Runs the model, once or more.
        names: The adapters whose slots are meant.

    Raises:
        AttachError: an adapter of that name is not there, or no slot ran.
    """
    state = attachment(model)
    for name in names:
        state.require(name)
    follower, handles, every = _Follower(), [], dict[int, str]()
    for module, place, owner in _slots(model, names):
        every[id(module)] = " ".join(place)
        handles += [
            module.register_forward_pre_hook(follower.begins, prepend=True),
            module.register_forward_hook(follower.ends(place, owner)),
        ]
    try:
        with torch.no_grad(), observe(follower.op):
            call()
    finally:
        for handle in handles:
            handle.remove()
    if not follower.done:
        raise AttachError(
            "the call came through no slot",
            where="explain",
            got=f"adapters {', '.join(names)}",
            allowed="a call whose rows use one of them",
            try_="hfadapt.verify(model), which looks at every slot",
        )
    base = tuple((op, backend, count) for (op, backend), count in follower.base.items())
    silent = tuple(text for key, text in every.items() if key not in follower.ran)
    return CallReport(tuple(follower.done), silent, base)


def _slots(model: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[nn.Module, tuple[str, str, str], str | None]]:
    """Yield what may run for these adapters: the module, its place, and the owner of one that is no delta."""
    for path, slot in slots_of(model):
        for key, delta in slot.deltas.items():
            if isinstance(delta, Delta) and not set(names).isdisjoint(delta.names):
                depth = f" of layer {delta.site.layer}" if delta.site.shared_layer else ""
                yield delta, (path, delta.site.slot + depth, key.partition("__")[0]), None
        for key, fusion in slot.fusions.items():
            yield fusion, (path, "fusion", type(fusion).__name__), fused_node(key)
    for name in names:
        for path, copy in copies_of(model, name):
            yield copy, (path, "own copy", type(copy).__name__), name


def _adapters_in(args: tuple[Any, ...]) -> tuple[str, ...]:
    return next((one.names for one in args if hasattr(one, "batch") and hasattr(one, "names")), ())


def _change(given: Tensor | None, output: Any) -> float | None:
    found = output[0] if isinstance(output, tuple) else output
    if given is None or not isinstance(found, Tensor) or found.shape != given.shape or not given.is_floating_point():
        return None
    before = given.float()
    return float((found.float() - before).norm() / before.norm().clamp_min(1e-12))
