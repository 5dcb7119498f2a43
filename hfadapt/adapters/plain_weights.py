"""Refusing to save adapters whose parameters another tool makes of others at every call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..errors import CheckpointError
from ..runtime.attachment import deltas_of, shared_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["require_plain"]


def require_plain(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Refuse adapters with parameters that ``torch.nn.utils`` has put others in place of.

    A file would hold those others, under keys that no adapter has, and no load would take it.

    Args:
        model: An adapted model.
        names: The adapters.

    Raises:
        CheckpointError: an adapter's parameters are pruned or parametrised.
    """
    for name in names:
        own = [(path, delta.adapters[name]) for path, delta in deltas_of(model, name)]
        for path, whole in (*own, ("what its layers share", shared_modules(model, name))):
            for inner, module in whole.named_modules():
                kind = _replaced(module)
                if kind:
                    raise CheckpointError(
                        f"an adapter's parameters are {kind}, and a folder of adapters holds parameters alone",
                        where=f"adapter {name!r}",
                        got=f"{'.'.join(filter(None, (path, inner)))}: {', '.join(dict(module.named_parameters()))}",
                        allowed="the parameters that attach made",
                        try_=_CURES[kind],
                    )


_CURES = {
    "parametrised": "torch.nn.utils.parametrize.remove_parametrizations(module, name), which keeps their values",
    "pruned or normed by a hook": "torch.nn.utils.prune.remove(module, name), or remove_weight_norm, which keep their "
    "values",
}


def _replaced(module: nn.Module) -> str:
    if is_parametrized(module):
        return "parametrised"
    # prune, weight_norm and spectral_norm of torch.nn.utils; each is a hook before a call, with the name it serves
    hooks = module._forward_pre_hooks.values()
    served = [getattr(hook, "name", None) or getattr(hook, "_tensor_name", None) for hook in hooks]
    held = module._parameters
    other = any(isinstance(name, str) and name not in held and name in module.__dict__ for name in served)
    return "pruned or normed by a hook" if other else ""
