"""A look at what deltas are given and what they return, while a small batch with rows of several adapters runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from hfadapt_kernels import TaskBatch

from .. import plugins
from ..errors import AttachError
from ..method.delta import Delta
from ..routing.routing import Rows
from ..runtime.attention import AttentionCall, AttentionDelta

if TYPE_CHECKING:
    from ..method.method import Place

__all__ = ["Proof", "check_place"]

# By how much a row may differ from the same row alone, as a part of its largest value: sums in another order.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Proof:
    """Forward hooks of deltas.

    Args:
        paths: Of the deltas, by id.
    """

    def __init__(self, paths: dict[int, str]) -> None:
        self.paths = paths
        self.fired: set[int] = set()
        # Deltas that have not returned yet, and what each was given.
        self.running: list[tuple[Delta, Any]] = []
        # Deltas run once more, to compare.
        self.comparing = False

    def begins(self, delta: nn.Module, args: tuple) -> None:
        """Keep what a delta is given, which it may change."""
        if _can_look_at(delta) and not self.comparing:
            call = args[0]
            # A delta may put others in the place of a call's tensors; in the tensors themselves it changes nothing.
            seen = _tensors(call) if isinstance(call, AttentionCall) else args[:2]
            given = (tuple(tensor.clone() for tensor in seen), _copy(call) if isinstance(call, AttentionCall) else None)
            self.running.append((delta, given))

    def ends(self, delta: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Note that a delta ran.

        Raises:
            AttachError: it returned what it may not.
        """
        self.fired.add(id(delta))
        if not _can_look_at(delta) or self.comparing:
            return
        found, (given, call) = self.running.pop()
        self.comparing = True
        try:
            if isinstance(found, AttentionDelta):
                wrong = _wrong_attention(found, given, call, *args[1:], output=output)
            else:
                wrong = _wrong(found, given, *args, norm=kwargs, output=output)
        finally:
            self.comparing = False
        if wrong:
            raise self.error(found, wrong)

    def error(self, delta: Delta, what: str) -> AttachError:
        """Return the error that names a delta, and the plugin that its method is from."""
        method = delta.own(delta.names[0]).config.method
        return AttachError(
            f"a delta of {', '.join(delta.names)} does not do what a delta may",
            where=f"{self.paths[id(delta)]} ({type(delta).__name__}; method {method!r} of "
            f"{plugins.methods().origin(method)})",
            got=what,
            allowed="a finite tensor of the shape and dtype of what it changes, other adapters' rows as they were",
            try_="hfadapt.testing.conformance checks a method on every architecture",
        )


def check_place(place: Place, method: str) -> None:
    """Raise ``AttachError`` unless a place that a method chose makes a delta of the kind that its site runs."""
    made: Any = place.delta
    wanted = AttentionDelta if place.site.side == "attention" else Delta
    if (
        not isinstance(made, type)
        or not issubclass(made, Delta)
        or issubclass(made, AttentionDelta) is not (wanted is AttentionDelta)
    ):
        raise AttachError(
            "a method chose something that is no delta for a place",
            where=f"{place.site.leaf} ({place.site.slot}; method {method!r} of {plugins.methods().origin(method)})",
            got=repr(made),
            allowed=f"a subclass of {wanted.__name__}",
            try_=f"class MyDelta({wanted.__name__}), and the class itself, not an object of it, in the method's Place",
        )


def _can_look_at(module: nn.Module) -> TypeGuard[Delta]:
    """No copy of a module of the base; and no layer that was compiled, whose graph a look at numbers would cut."""
    return isinstance(module, Delta) and not torch.compiler.is_compiling()


def _wrong(
    delta: Delta,
    given: tuple[Tensor, ...],
    value: Tensor,
    source: Tensor,
    rows: Rows,
    norm: dict[str, Any],
    output: Any,
) -> str:
    """Say what is wrong with what a delta returned, or ""."""
    what = _unlike(output, value.shape, value.dtype, given)
    if what:
        return what
    if not all(map(_equal, (value, source), given)):
        return "it changed in place what it was given"
    idle = rows.batch.ids < 0
    if not norm and not _equal(output[idle], value[idle]):
        return "rows without an adapter changed"
    return _unlike_alone(output, rows, given, lambda one: delta.forward(value, source, one, **norm))


def _wrong_attention(
    delta: AttentionDelta,
    given: tuple[Tensor, ...],
    call: AttentionCall,
    rows: Rows,
    proceed: functools.partial[Any],
    output: Any,
) -> str:
    """Say what is wrong with what a delta in attention returned, or "".

    Args:
        delta: Which one.
        given: Copies of the call's queries, keys and values.
        call: As the delta was given it, with the tensors themselves: copies of them may be summed otherwise.
        rows: Which adapter each row uses.
        proceed: What the delta called to go on; its second argument says what stands behind it.
        output: What it returned.
    """
    if not isinstance(output, tuple) or len(output) != 2:
        return f"{type(output).__name__}, not a tuple of the attention's output and its weights or None"
    shape = torch.Size((call.query.shape[0], call.query.shape[2], call.query.shape[1], call.value.shape[-1]))
    what = _unlike(output[0], shape, call.query.dtype, given)
    if what:
        return what
    if not all(map(_equal, _tensors(call), given)):
        return "it changed in place what it was given"

    def go_on(one: AttentionCall) -> functools.partial[Any]:
        return functools.partial(proceed.func, one, *proceed.args[1:])

    idle = rows.batch.ids < 0
    if idle.any() and not _equal(output[0][idle], go_on(_copy(call))()[0][idle]):
        return "rows without an adapter changed"

    def run(rows: Rows) -> Any:
        one = _copy(call)
        made = delta.forward(one, rows, go_on(one))
        return made[0] if isinstance(made, tuple) else made

    return _unlike_alone(output[0], rows, given, run)


def _unlike_alone(output: Tensor, rows: Rows, given: tuple[Tensor, ...], run: Callable[[Rows], Any]) -> str:
    """Compare the rows of each adapter with those of a batch that has no others."""
    if rows.batch.uniform or rows.routing.cache is not None:  # with a cache, a second call would be a second step
        return ""
    for index, name in enumerate(rows.names):
        alone = run(replace(rows, names=(name,), batch=TaskBatch.single(output.shape[0], output.device)))
        what = _unlike(alone, output.shape, output.dtype, given)
        if what:
            return f"{what} (when every row is of {name!r})"
        error = _distance(output, alone, rows.batch.ids == index)
        if error > 0:
            return f"rows of {name!r} differ by {error:.2g} from the same rows in a batch of {name!r} alone"
    return ""


def _copy(call: AttentionCall) -> AttentionCall:
    return replace(call, options={**call.options})


def _tensors(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    return call.query, call.key, call.value


def _equal(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right) or bool(((left == right) | (left.isnan() & right.isnan())).all())


def _distance(left: Tensor, right: Tensor, rows: Tensor) -> float:
    """By how much some rows differ; 0 where sums in another order explain it, or there are no such rows."""
    mine, alone = left[rows], right[rows]
    if torch.equal(mine, alone):
        return 0.0
    error = float((mine - alone).abs().max())
    bound = _TOLERANCE.get(left.dtype, 2e-2) * max(1.0, float(right.abs().max()))
    return 0.0 if error <= bound else error


def _unlike(found: Any, shape: torch.Size, dtype: torch.dtype, given: tuple[Tensor, ...]) -> str:
    if not isinstance(found, Tensor):
        return f"{type(found).__name__}, not a tensor"
    if found.shape != shape:
        return f"a tensor of shape {list(found.shape)}, not {list(shape)}"
    if found.dtype != dtype:
        return f"a tensor of {found.dtype}, not {dtype}"
    if not torch.isfinite(found).all() and all(torch.isfinite(tensor).all() for tensor in given):
        return "NaN or infinite numbers for finite ones"
    return ""
