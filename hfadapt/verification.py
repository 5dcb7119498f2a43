"""One small forward pass that proves that every slot of an adapter runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import AttachError, problem
from .state import attachment, copies_of, deltas_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["verify"]


def verify(model: PreTrainedModel, names: Iterable[str] | None = None) -> int:
    """Run one forward pass on a tiny input and count that every delta, and every copy of a module, fires.

    Fused modules (``nn.MultiheadAttention`` and kernels that replace a forward) never call the leaf modules they hold;
    a delta there would be trained and saved and do nothing.

    Args:
        model: An adapted model; on the meta device nothing can be run and 0 is returned.
        names: The adapters to look at; all by default.

    Returns:
        How many of them fired.

    Raises:
        AttachError: a delta did not fire; the first few are named.
    """
    from .example_inputs import example_inputs

    state = attachment(model)
    if any(p.is_meta for p in model.parameters()):
        return 0
    chosen = list(state.names if names is None else names)
    fired: set[int] = set()
    handles = []
    deltas: dict[int, tuple[str, nn.Module]] = {}
    for name in chosen:
        deltas.update({id(delta): (path, delta) for path, delta in deltas_of(model, name)})
    representatives = _representatives(state, chosen)
    for name in representatives:
        deltas.update({id(own): (f"{path} (its own copy)", own) for path, own in copies_of(model, name)})
    for _, delta in deltas.values():
        handles.append(delta.register_forward_hook(_note(fired)))
    drop = state.drop
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()
        state.drop = {}
        # Rows with and without each adapter are covered by the methods' own tests; here each adapter runs alone.
        with torch.no_grad():
            for name in representatives:
                # By name: a call inside of generate would take that one's adapters.
                model(**example_inputs(model), task_ids=name)
    finally:
        state.drop = drop
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    silent = [path for key, (path, delta) in deltas.items() if key not in fired]
    if silent:
        raise AttachError(
            problem(
                "some deltas would never run in this model",
                where=type(model).__name__,
                got=f"{len(silent)} silent, e.g. {silent[0]}",
                allowed="every slot fires in a forward pass",
                try_="another method or other layers; fused kernels that bypass these modules must be switched off; "
                "train_head=False where the model's head does not run",
            )
        )
    return len(fired)


def _representatives(state: Any, names: list[str]) -> list[str]:
    """One adapter of each kind: adapters with equal configs use the same deltas, and copies of the same modules."""
    seen: dict[Any, str] = {}
    for name in names:
        one = state.adapters[name]
        seen.setdefault((one.configs, one.heads, one.modules), name)
    return list(seen.values())


def _note(fired: set[int]) -> Any:
    def note(module: nn.Module, args: tuple, output: Any) -> None:
        fired.add(id(module))

    return note
