"""One small forward pass that proves that every slot of an adapter runs, and does to its rows what a slot may."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from .. import plugins
from ..architecture.inputs import first_that_runs
from ..architecture.modes import evaluating
from ..errors import ArchitectureError, AttachError, HFAdaptError, RoutingError
from ..errors.arguments import require_mapping
from ..errors.names import names_of
from ..runtime.attachment import Attachment, attachment
from .delta_proof import Proof
from .first_calls import wait_for_calls
from .silence import Silence
from .weight_reads import holds_compiled_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["prove", "verify"]

logger = logging.getLogger(__name__)


def verify(
    model: PreTrainedModel, names: Iterable[str] | None = None, *, inputs: Mapping[str, Any] | None = None
) -> int:
    """Run forward passes on a tiny input, count that every delta fires, and look at what it returns.

    Fused modules (``nn.MultiheadAttention`` and kernels that replace a forward) never call the leaf modules they hold;
    a delta there would be trained and saved and do nothing. The batch is mixed where the methods can be: beside rows of
    an adapter stands one without any, and one of another adapter where there is one. What a delta returns must have the
    shape and dtype of what it changes, be finite, keep rows without an adapter bit for bit, and give each row what it
    gets when all rows are of its adapter.

    Args:
        model: An adapted model; on the meta device nothing can be run and 0 is returned.
        names: The adapters to look at; all by default.
        inputs: Keyword arguments for one forward; by default such are made from the config.

    Returns:
        How many deltas fired.

    Raises:
        AttachError: a delta did not fire, raised an error, or returned something else; it is named, and the plugin that
            its method is from. Or there is no adapter of that name.
        ArchitectureError: no inputs could be made with which the model runs.
    """
    state = attachment(model)
    if any(p.is_meta for p in model.parameters()):
        return 0
    chosen = list(state.names if names is None else names_of(names))
    if names is not None and not chosen:
        raise AttachError(
            "nothing to verify",
            where="verify",
            got="names=()",
            allowed="names, or None for all",
            try_="leave names out, which looks at every adapter",
        )
    for name in chosen:
        state.require(name)
    if inputs is not None:
        require_mapping("inputs", inputs, where="verify", allowed="a dict of the model's inputs", error=AttachError)
    wait_for_calls(model)
    representatives = _representatives(state, chosen)
    silence = Silence(model, chosen, representatives)
    proof = Proof({key: path for key, (path, _) in silence.deltas.items()})
    handles = []
    for _, delta in silence.deltas.values():
        handles.append(delta.register_forward_pre_hook(proof.begins))
        handles.append(delta.register_forward_hook(proof.ends, with_kwargs=True))
    drop = state.drop
    device = next((p.device.type for p in model.parameters()), "cpu")
    try:
        state.drop = {}
        # Outside of autocast, which gives a delta another dtype than what it changes.
        with evaluating(model), torch.no_grad(), torch.autocast(device, enabled=False), silence:
            for name in representatives:
                _run(model, state, name, proof, inputs)
            undecided = silence.undecided()
            if undecided and not holds_compiled_code(model):
                with silence.reads(undecided):
                    for name in representatives:
                        _run(model, state, name, proof, inputs)
    finally:
        state.drop = drop
        for handle in handles:
            handle.remove()
    silence.report()
    return len(silence.fired)


def prove(model: PreTrainedModel, names: Iterable[str] | None = None) -> int:
    """Verify; where no inputs can be made with which the model runs, let its next call show that every delta fires.

    Args:
        model: As of `verify`.
        names: As of `verify`.

    Raises:
        AttachError: as of `verify`.
    """
    try:
        return verify(model, names)
    except ArchitectureError as error:
        logger.info("what the adapters do is shown by the first call of the model: %s", error)
        wait_for_calls(model, attachment(model).names if names is None else names_of(names))
        return 0


def _run(model: PreTrainedModel, state: Attachment, name: str, proof: Proof, inputs: Mapping[str, Any] | None) -> None:
    def call(rows: int, task_ids: Any) -> None:
        if inputs is not None:
            return _call(model, dict(inputs), task_ids, proof)
        first_that_runs(model, rows, lambda given: _call(model, given, task_ids, proof))

    if inputs is None and _can_mix(state, name):
        other = next((n for n in state.names if n != name and _can_mix(state, n)), name)
        try:
            return call(3, [name, None, other])
        except RoutingError as error:
            # A module that reads one table for all rows refuses mixed batches, in this proof as in any call.
            logger.debug("%s takes no mixed batch (%s)", type(model).__name__, error)
        except ArchitectureError as error:
            # Some heads take one row alone until the config has a padding token; then no batch can be mixed either.
            logger.debug("%s takes no batch of three rows (%s)", type(model).__name__, error)
    call(1, name)


def _call(model: PreTrainedModel, inputs: dict[str, Any], task_ids: Any, proof: Proof) -> None:
    proof.running.clear()
    try:
        # By name: a call inside of generate would take that one's adapters.
        model(**inputs, task_ids=task_ids)
    except HFAdaptError:
        raise
    except Exception as error:
        if not proof.running:
            raise
        delta = proof.running[-1][0]
        raise proof.error(delta, f"raised {type(error).__name__}: {error}") from error


def _can_mix(state: Attachment, name: str) -> bool:
    configs = state.adapters[name].configs
    return all(plugins.methods()[config.method].capabilities.mixed_batch for config in configs)


def _representatives(state: Attachment, names: list[str]) -> list[str]:
    """One adapter of each kind: adapters with equal configs use the same deltas, and copies of the same modules."""
    seen: dict[Any, str] = {}
    for name in names:
        one = state.adapters[name]
        seen.setdefault((one.configs, one.heads, one.modules), name)
    return list(seen.values())
