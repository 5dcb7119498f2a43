"""One small forward pass that proves that every slot of an adapter runs, and does to its rows what a slot may."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import plugins
from ..errors import AttachError, HFAdaptError, RoutingError
from ..errors.names import names_of
from ..runtime.attachment import Attachment, attachment, copies_of, deltas_of
from .delta_proof import Proof

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["verify"]

logger = logging.getLogger(__name__)


def verify(model: PreTrainedModel, names: Iterable[str] | None = None) -> int:
    """Run forward passes on a tiny input, count that every delta fires, and look at what it returns.

    Fused modules (``nn.MultiheadAttention`` and kernels that replace a forward) never call the leaf modules they hold;
    a delta there would be trained and saved and do nothing. The batch is mixed where the methods can be: beside rows of
    an adapter stands one without any, and one of another adapter where there is one. What a delta returns must have the
    shape and dtype of what it changes, be finite, keep rows without an adapter bit for bit, and give each row what it
    gets when all rows are of its adapter.

    Args:
        model: An adapted model; on the meta device nothing can be run and 0 is returned.
        names: The adapters to look at; all by default.

    Returns:
        How many deltas fired.

    Raises:
        AttachError: a delta did not fire, raised an error, or returned something else; it is named, and the plugin that
            its method is from.
    """
    state = attachment(model)
    if any(p.is_meta for p in model.parameters()):
        return 0
    chosen = list(state.names if names is None else names_of(names))
    deltas: dict[int, tuple[str, nn.Module]] = {}
    for name in chosen:
        deltas.update({id(delta): (path, delta) for path, delta in deltas_of(model, name)})
    representatives = _representatives(state, chosen)
    for name in representatives:
        deltas.update({id(own): (f"{path} (its own copy)", own) for path, own in copies_of(model, name)})
    proof = Proof({key: path for key, (path, _) in deltas.items()})
    handles = []
    for _, delta in deltas.values():
        handles.append(delta.register_forward_pre_hook(proof.begins))
        handles.append(delta.register_forward_hook(proof.ends, with_kwargs=True))
    drop = state.drop
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()
        state.drop = {}
        # Outside of autocast, which gives a delta another dtype than what it changes.
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            for name in representatives:
                _run(model, state, name, proof)
    finally:
        state.drop = drop
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    silent = [path for key, (path, _) in deltas.items() if key not in proof.fired]
    if silent:
        raise AttachError(
            "some deltas would never run in this model",
            where=type(model).__name__,
            got=f"{len(silent)} silent, e.g. {silent[0]}",
            allowed="every slot fires in a forward pass",
            try_="another method or other layers; fused kernels that bypass these modules must be switched off; "
            "train_head=False where the model's head does not run",
        )
    return len(proof.fired)


def _run(model: PreTrainedModel, state: Attachment, name: str, proof: Proof) -> None:
    from ..architecture.inputs import example_inputs

    inputs = example_inputs(model)
    if _can_mix(state, name):
        other = next((n for n in state.names if n != name and _can_mix(state, n)), name)
        mixed = {key: value.repeat(3, *(1,) * (value.dim() - 1)) for key, value in inputs.items()}
        try:
            return _call(model, mixed, [name, None, other], proof)
        except RoutingError as error:
            # A module that reads one table for all rows refuses mixed batches, in this proof as in any call.
            logger.debug("%s takes no mixed batch (%s)", type(model).__name__, error)
        except HFAdaptError:
            raise
        except Exception as error:
            # Some heads take one row alone until the config has a padding token; then no batch can be mixed either.
            logger.debug("%s takes no batch of three rows (%s)", type(model).__name__, error)
    _call(model, inputs, name, proof)


def _call(model: PreTrainedModel, inputs: dict[str, Tensor], task_ids: Any, proof: Proof) -> None:
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
