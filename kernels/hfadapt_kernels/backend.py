"""Which implementation of an op runs: chosen by device, dtype and support, explained, never silent.

Backends are ``triton`` (GPU), ``cpu`` (C++) and ``reference`` (plain PyTorch, runs everywhere). ``auto``, the default,
takes the first that can run and says so once at INFO. A backend named explicitly, through ``HFADAPT_BACKEND`` or
`use_backend`, either runs or raises with every reason. Backends of third parties (`add_backend`) are asked first.
``HFADAPT_BACKEND=cpu`` asks for CPU tensors only, and
``triton`` on CPU tensors works under ``TRITON_INTERPRET=1`` (the tests use that).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from . import native
from .direct import KERNELS, unobserved
from .errors import BackendError
from .misfits import nearest
from .triton.shared import named

__all__ = [
    "BACKENDS",
    "FusedOp",
    "Implementation",
    "add_backend",
    "explain",
    "observe",
    "remove_backend",
    "requested_backend",
    "use_backend",
]

BACKENDS = ("triton", "cpu", "reference")
_requested: ContextVar[str | None] = ContextVar("hfadapt_backend", default=None)
_observer: ContextVar[Callable[[str, str], None] | None] = ContextVar("hfadapt_observer", default=None)
_log = logging.getLogger("hfadapt_kernels")
_VARIABLE = "HFADAPT_BACKEND"
# Every op of every slot asks whether the variable is set. The dictionary inside os.environ says so in one step, and as
# it is now; the mapping itself takes four calls of Python's.
_ENVIRONMENT: Any = getattr(os.environ, "_data", os.environ)
_KEY: Any = os.environ.encodekey(_VARIABLE) if hasattr(os.environ, "encodekey") else _VARIABLE
_OPS: dict[str, FusedOp] = {}
# Of third parties, in the order in which they came.
_ADDED: list[str] = []


def _known() -> tuple[str, ...]:
    return (*_ADDED, *BACKENDS)


def _check_name(name: str) -> str:
    if name != "auto" and name not in _known():
        raise BackendError(
            "backend",
            "unknown name",
            expected=f"auto or one of {_known()}",
            got=repr(name),
            hint=nearest(name, ("auto", *_known()), "hfadapt doctor shows which of them run here."),
        )
    return name


def requested_backend() -> str:
    """The backend asked for: the innermost `use_backend`, else ``HFADAPT_BACKEND``, else ``auto``."""
    inner = _requested.get()
    if inner is not None:
        return inner
    if _KEY not in _ENVIRONMENT:
        return "auto"
    return _check_name(os.environ.get(_VARIABLE, "auto").strip() or "auto")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the block with this backend (``auto``, ``reference``, ``cpu`` or ``triton``)."""
    token = _requested.set(_check_name(name))
    try:
        yield
    finally:
        _requested.reset(token)


@contextlib.contextmanager
def observe(call: Callable[[str, str], None]) -> Iterator[None]:
    """Tell of every op that chooses its backend inside the block: ``call(op, backend)``, before the op runs."""
    token = _observer.set(call)
    try:
        yield
    finally:
        _observer.reset(token)


@functools.cache
def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def _device_reason(backend: str, device: str) -> str | None:
    """Why ``backend`` cannot serve tensors of ``device`` at all; ``None`` when it can."""
    if backend == "reference" or backend not in BACKENDS:
        return None  # a third party's says so itself, in ``supports``
    if backend == "cpu":
        return native.why_not() if device == "cpu" else f"the C++ kernels take CPU tensors, not {device}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cpu" and not _interpreting():
        return "triton has no CPU target (TRITON_INTERPRET=1 interprets the kernels, slowly)"
    if device not in ("cpu", "cuda"):
        return f"the Triton kernels are not tested on {device}"
    return None


def _no_gradient(*arguments: Any) -> Any:
    """The backward of an op that has none; its schema registers no autograd formula, so nothing calls this."""
    raise NotImplementedError("this op has no gradient")


@dataclass(frozen=True)
class Implementation:
    """One backend's functions for one op.

    Attributes:
        backend: One of `BACKENDS`, or a third party's name.
        forward: Called with the arguments of the op's forward schema.
        backward: Called with the arguments of the op's backward schema; raises for ops without a gradient.
        supports: ``supports(device=..., dtype=..., **facts)`` returns ``None`` or the reason why not.
    """

    backend: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    supports: Callable[..., str | None] | None = None

    def reason(self, device: str, dtype: torch.dtype, facts: dict[str, Any]) -> str | None:
        """Why this implementation cannot serve the request; ``None`` when it can."""
        found = _device_reason(self.backend, device)
        if found is None and self.supports is not None:
            found = self.supports(device=device, dtype=dtype, **facts)
        return found


class _Running(threading.local):
    implementation: Implementation | None = None


class FusedOp:
    """The registry entry of one op: its implementations and the choice between them.

    Args:
        name: Name in the namespace ``hfadapt``.
        example_facts: Facts that stand for an ordinary call, used by `explain`.
    """

    def __init__(self, name: str, **example_facts: Any) -> None:
        self.name = name
        self.example_facts = example_facts
        self._by_backend: dict[str, Implementation] = {}
        self._running = _Running()
        self._chosen: dict[tuple[Any, ...], Implementation] = {}
        _OPS[name] = self

    def register(
        self,
        backend: str,
        forward: Callable[..., Any],
        backward: Callable[..., Any] = _no_gradient,
        supports: Callable[..., str | None] | None = None,
    ) -> None:
        """Add or replace the implementation of ``backend``."""
        if backend == "triton":
            forward, backward = named(self.name, forward), named(self.name, backward)
        self._by_backend[_check_name(backend)] = Implementation(backend, forward, backward, supports)
        self._chosen.clear()

    def select(self, device: str, dtype: torch.dtype, wanted: str | None = None, **facts: Any) -> Implementation:
        """The implementation that serves this request.

        Args:
            device: Type of the tensors' device.
            dtype: Of the tensors.
            wanted: The backend asked for, where the caller knows it; else `requested_backend`.
            facts: What ``supports`` is told beside these; hashable.

        Raises:
            BackendError: A backend named explicitly cannot run; the message holds every reason.
        """
        wanted = wanted or requested_backend()
        key = (wanted, device, dtype, *facts.values())
        chosen = self._chosen.get(key)
        if chosen is None:
            chosen = self._choose(wanted, device, dtype, facts)
            self._chosen[key] = chosen
        told = _observer.get()
        if told is not None:
            told(self.name, chosen.backend)
        return chosen

    @property
    def running(self) -> Implementation | None:
        """The implementation that `run` was given, while it runs in this thread."""
        return self._running.implementation

    def run(self, implementation: Implementation | None, op: Callable[..., Any], *arguments: Any) -> Any:
        """``op(*arguments)`` whose kernels take ``implementation`` and choose none: one choice serves a call.

        The gradient is computed by what computed the result, whatever `use_backend` says by then: what one backend
        saves, another may not read. With ``None`` the kernels choose.
        """
        running, before = self._running, self._running.implementation
        running.implementation = implementation
        try:
            watched = torch.is_grad_enabled() or torch.is_autocast_enabled(arguments[0].device.type)
            if watched or not unobserved(arguments):
                return op(*arguments)
            with torch._C._AutoDispatchBelowAutograd():
                return KERNELS[op](*arguments)
        finally:
            running.implementation = before

    def _choose(self, wanted: str, device: str, dtype: torch.dtype, facts: dict[str, Any]) -> Implementation:
        reasons = []
        for backend in _known() if wanted == "auto" else (wanted,):
            implementation = self._by_backend.get(backend)
            reason = (
                f"{self.name} has no {backend} implementation"
                if implementation is None
                else implementation.reason(device, dtype, facts)
            )
            if implementation is not None and reason is None:
                _log_once(f"{self.name}: {backend} on {device} {dtype}" + "".join(f"; not {r}" for r in reasons))
                return implementation
            reasons.append(f"{backend}: {reason}")
        ours = [self._by_backend[name] for name in BACKENDS if name in self._by_backend]
        others = [one.backend for one in ours if one.reason(device, dtype, facts) is None]
        raise BackendError(
            self.name,
            f"the backend asked for cannot run on {device} {dtype}",
            expected=f"one that can: {', '.join(others)}" if others else "one that can, which none of ours does",
            got="; ".join(reasons),
            hint="Use HFADAPT_BACKEND=auto to fall back to one that can."
            if others
            else f"add_backend({self.name!r}, ...) adds one.",
        )


def add_backend(op: str, implementation: Implementation) -> None:
    """Add a third party's implementation of an op; the automatic choice asks it before ours.

    Args:
        op: Name of the op.
        implementation: Its ``backend`` is a name of its own, not one of `BACKENDS`; ``supports`` says which devices and
            dtypes it serves.

    Raises:
        BackendError: There is no such op, or the name is ours or taken for this op.
    """
    name = implementation.backend
    if op not in _OPS:
        known = tuple(sorted(_OPS))
        cure = nearest(op, known, "Import the module that defines the op first.")
        raise BackendError("add_backend", "op", expected=f"one of {known}", got=repr(op), hint=cure)
    if name in ("auto", *BACKENDS) or name in _OPS[op]._by_backend:
        raise BackendError(
            "add_backend",
            f"backend of {op}",
            expected="a name that is not taken",
            got=repr(name),
            hint=f"Call remove_backend({name!r}) first, to replace it."
            if name in _ADDED
            else f"Use a name of your own: 'auto' and {BACKENDS} are ours.",
        )
    if name not in _ADDED:
        _ADDED.append(name)
    _OPS[op]._by_backend[name] = implementation
    _OPS[op]._chosen.clear()


def remove_backend(name: str) -> None:
    """Take out what `add_backend` added under this name."""
    if name in _ADDED:
        _ADDED.remove(name)
        for op in _OPS.values():
            op._by_backend.pop(name, None)
            op._chosen.clear()


@functools.cache
def _log_once(message: str) -> None:
    _log.info("%s", message)


def explain() -> list[dict[str, str | bool]]:
    """One row for each op, device and backend: can it run here, and why not. ``hfadapt doctor`` prints them."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    rows: list[dict[str, str | bool]] = []
    for name in sorted(_OPS):
        op = _OPS[name]
        for device in devices:
            taken = False
            for backend in _known():
                implementation = op._by_backend.get(backend)
                if implementation is None and backend in _ADDED:
                    continue
                reason = (
                    "not implemented"
                    if implementation is None
                    else implementation.reason(device, torch.float32, op.example_facts)
                )
                chosen = reason is None and not taken
                taken = taken or chosen
                detail = (native.isa() or "") if backend == "cpu" and reason is None else ""
                rows.append(
                    {
                        "op": name,
                        "device": device,
                        "backend": backend,
                        "runs": reason is None,
                        "chosen": chosen,
                        "reason": reason or "",
                        "detail": detail,
                    }
                )
    return rows
