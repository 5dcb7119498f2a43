"""Deltas in the core of attention, through transformers' own ``AttentionInterface``.

Each stock implementation gets a twin, ``hfadapt_sdpa`` and ``hfadapt_eager``, which runs the deltas at the attention
module and falls through to the stock function where there are none. The twin's mask function is registered as well:
without it transformers passes no mask at all, silently.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hfadapt_kernels import TaskBatch

from ..architecture.interface import looks_up_attention
from ..errors import AttachError
from ..method.delta import Delta
from ..routing.context import current
from ..routing.draws import DrawSequence
from ..routing.routing import Routing, Rows
from ..routing.steps import Step
from .slot import applies

__all__ = ["SUPPORTED", "AttentionCall", "AttentionDelta", "disable", "enable", "implementation"]

SUPPORTED = ("eager", "sdpa")
_PREFIX = "hfadapt_"


@dataclass
class AttentionCall:
    """One call of the attention function, as deltas see it.

    Args:
        module: The attention module.
        query: ``[B, H, Tq, K]``, after rotary embedding.
        key: ``[B, G, Tk, K]``, after the cache's update.
        value: ``[B, G, Tk, K]``.
        mask: None, additive float (eager) or bool (sdpa) ``[B|1, 1|H, Tq, Tk]``.
        options: dropout, scaling, sliding_window, position_bias, is_causal, ...
        stock: The stock attention function; a delta may put one of its own in its place.
        name: Which one it is: ``eager`` or ``sdpa``.
        draws: A context for what drops attention weights in training: see `hfadapt.routing.draws`. None where torch's
            generator serves all rows.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    stock: Callable[..., tuple[Tensor, Tensor | None]]
    name: str
    draws: DrawSequence | None = None

    def run(self) -> tuple[Tensor, Tensor | None]:
        """Call the stock function: output ``[B, Tq, H, K]`` and weights or None."""
        return self.stock(self.module, self.query, self.key, self.value, self.mask, **self.options)


class AttentionDelta(Delta):
    """Base of deltas in the core of attention."""

    def forward(  # type: ignore[override]
        self, call: AttentionCall, rows: Rows, proceed: Callable[[], tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output ``[B, Tq, H, K]`` and its weights or None.

        Args:
            call: What the attention module asked for; may be changed before ``proceed()``.
            rows: Which adapter each row uses.
            proceed: Runs the next delta at this module, or the stock attention function.
        """
        raise NotImplementedError


def _stock(name: str, module: nn.Module) -> Callable[..., Any]:
    if name == "eager":  # not in the registry: every modelling file has its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


class _DrawsApart:
    """A stock attention function whose dropout moves no generator: it may run for the rows of some adapters only.

    Args:
        stock: The function.
        draws: Of the call.
    """

    def __init__(self, stock: Callable[..., Any], draws: DrawSequence) -> None:
        self.stock = stock
        self.draws = draws

    def __call__(self, *args: Any, **options: Any) -> Any:
        with self.draws:
            return self.stock(*args, **options)


class _Twin:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        stock = _stock(self.name, module)
        routing = current()
        slot = getattr(module, "hfadapt", None)
        draws = None
        side = () if slot is None else slot.side("attention")
        if side and routing is not None and routing.state.draws is not None and options.get("dropout"):
            draws = routing.state.draws.at(f"attention {side[0].site.leaf}", routing.state.calls)
            stock = _DrawsApart(stock, draws)
        call = AttentionCall(module, query, key, value, attention_mask, options, stock, self.name, draws)
        if routing is None or slot is None:
            return call.run()
        deltas = [delta for delta in slot.side("attention") if applies(delta, routing)]
        if not deltas:  # under Parallel the rows are not repeated yet where nothing applies
            return call.run()
        return _chain(call, _pending(deltas, routing.for_batch(query.shape[0]), module))


def _pending(deltas: Sequence[Delta], routing: Routing, module: nn.Module) -> list[_Pending]:
    """What runs at this module, step by step."""
    steps = [(index, step) for index, step in enumerate(routing.steps) if routing.takes_part(index)]
    return [_Pending(delta, step, index, routing, module) for index, step in steps for delta in deltas]


def _chain(call: AttentionCall, pending: Sequence[_Pending]) -> tuple[Tensor, Tensor | None]:
    """Run the first pass, which decides when the rest runs; behind the last one stands the stock function."""
    return pending[0](call, pending[1:]) if pending else call.run()


@dataclass(frozen=True)
class _Pending:
    """One delta in one step."""

    delta: Delta
    step: Step
    index: int
    routing: Routing
    module: nn.Module

    def __call__(self, call: AttentionCall, rest: Sequence[_Pending]) -> tuple[Tensor, Tensor | None]:
        seen: list[Tensor | None] = []

        def kept(result: tuple[Tensor, Tensor | None]) -> Tensor:
            seen.append(result[1])
            return result[0]

        def unchanged() -> Tensor:
            return kept(_chain(replace(call, options=dict(call.options)), rest))

        def run(names: tuple[str, ...], batch: TaskBatch) -> Tensor:
            one = replace(call, options=dict(call.options))  # a delta may change the call before it goes on
            rows = Rows(names, batch, self.routing, self.module, self.index)
            assert isinstance(self.delta, AttentionDelta)
            proceed = functools.partial(_chain, one, rest)
            if self.routing.state.draws is None:
                return kept(self.delta(one, rows, proceed))
            with self.routing.state.draws.at(f"{self.delta.place} {self.index}", self.routing.state.calls):
                return kept(self.delta(one, rows, proceed))

        output = self.step.apply(self.routing, self.index, call.query.device, self.delta.names, unchanged, run)
        # An average has no attention weights of its own.
        return output, seen[0] if len(seen) == 1 else None


def implementation(model: PreTrainedModel) -> str:
    """Return the stock attention implementation of ``model``, without our prefix."""
    return str(model.config._attn_implementation).removeprefix(_PREFIX)


def _twin(stock: str) -> str:
    """Return the name of the twin of a stock implementation, registered."""
    name = _PREFIX + stock
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _Twin(stock))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[stock])
    return name


def enable(model: PreTrainedModel) -> str:
    """Switch ``model`` to the twin of its attention implementation; return the one it had.

    Raises:
        AttachError: the model or a part of it does not use AttentionInterface, or has an implementation without a twin.
    """
    before = str(model.config._attn_implementation)
    if before.startswith(_PREFIX):
        return before
    if before not in SUPPORTED:
        raise AttachError(
            "deltas in attention need an attention implementation that takes prefixes",
            where=type(model).__name__,
            got=before,
            allowed=", ".join(SUPPORTED),
            try_="from_pretrained(..., attn_implementation='sdpa')",
        )
    name = _twin(before)
    earlier = [(config, getattr(config, "_attn_implementation", None)) for config in _configs(model)]
    refused = ""
    try:
        model.set_attn_implementation(name)
    except ValueError as error:
        refused = f"{type(error).__name__}: {str(error)[:200]}"
    if not refused and model.config._attn_implementation == name:
        for config, own in earlier:  # a part may have another one than the model around it (MaskFormer's decoder)
            if own != before and own in SUPPORTED:
                _set(config, _twin(own))
        _enable_copies(model)
        return before
    for config, implementation in earlier:
        if implementation is not None:
            _set(config, implementation)
    if not _enable_parts(model):
        got = f"attn_implementation={model.config._attn_implementation!r} after {name!r} was set"
        raise AttachError(
            "this model computes attention by itself, not through transformers' AttentionInterface",
            where=type(model).__name__,
            got=refused or got,
            allowed="models whose attention is a function that from_pretrained can choose, in any of their parts",
            try_="a method that does not change attention's core: lora, bottleneck, pal",
        )
    return before


def _enable_copies(model: nn.Module) -> None:
    """Switch the modules whose config is a copy that transformers does not know of (X-CLIP's second tower)."""
    for module in model.modules():
        config = getattr(module, "config", None)
        chosen = str(getattr(config, "_attn_implementation", ""))
        if chosen in SUPPORTED and looks_up_attention(module):
            _set(config, _twin(chosen))


def _enable_parts(model: PreTrainedModel) -> bool:
    """Switch the parts that take an attention function, each to the twin of its own; whether there are any.

    A part takes none where its code computes attention by itself; its neighbours may stand in a model that does.
    """
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    fixed = {id(part.config) for part in parts if not _takes_functions(part)}
    chosen = {id(part.config): part.config for part in parts if id(part.config) not in fixed}
    for config in chosen.values():
        _set(config, _twin(str(config._attn_implementation).removeprefix(_PREFIX)))
    return bool(chosen)


def _takes_functions(part: PreTrainedModel) -> bool:
    """Whether transformers lets the attention function of a model of its own be changed to the twin of what it has."""
    current = str(part.config._attn_implementation).removeprefix(_PREFIX)
    if current not in SUPPORTED or not part._can_set_attn_implementation():
        return False
    try:
        return part.get_correct_attn_implementation(_twin(current)) == _twin(current)
    except ValueError:
        return False


def _configs(model: nn.Module) -> list[Any]:
    """The configs of a model and its parts, each once."""
    found = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in found if config is not None}.values())


def follow(configs: Sequence[Any], where: str) -> list[str]:
    """Switch configs whose attention implementation was changed since ``enable`` to the twins of the new ones.

    Returns:
        The implementations that were chosen, one a config.

    Raises:
        AttachError: one has no twin.
    """
    chosen = [str(config._attn_implementation).removeprefix(_PREFIX) for config in configs]
    for name in chosen:
        if name not in SUPPORTED:
            raise AttachError(
                "the model's attention implementation was changed to one that takes no prefixes",
                where=where,
                got=name,
                allowed=", ".join(SUPPORTED),
                try_="model.set_attn_implementation('sdpa'), or activate an adapter without deltas in attention",
            )
    for config, name in zip(configs, chosen, strict=True):
        _set(config, _twin(name))
    return chosen


def _set(config: Any, name: str) -> None:
    # The property's setter would change the configs of parts as well, which have a choice of their own.
    internal = "_attn_implementation_internal"
    setattr(config, internal if hasattr(config, internal) else "_attn_implementation", name)


def disable(model: PreTrainedModel, before: str) -> None:
    """Put back the attention implementation ``before``, unless another was chosen since; each part's own in parts."""
    chosen = [(config, str(getattr(config, "_attn_implementation", ""))) for config in _configs(model)]
    if str(model.config._attn_implementation).startswith(_PREFIX):
        with suppress(ValueError):  # of a part that takes none but its own, which it has
            model.set_attn_implementation(before)
    for config, name in chosen:
        if name.startswith(_PREFIX):
            _set(config, name.removeprefix(_PREFIX))
