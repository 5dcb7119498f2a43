"""Adapters that peft put into the same model: which there are, and what they do to ours.

Nothing here imports peft: where nobody did, no layer of its own is in a model.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .attachment import Attachment

__all__ = ["digests", "inside_peft", "notice_frozen", "peft_parameters"]

logger = logging.getLogger(__name__)


def _layer_class() -> Any:
    """The class of peft's layers; the empty tuple, of which nothing is an instance, where peft is not imported."""
    return getattr(sys.modules.get("peft.tuners.tuners_utils"), "BaseTunerLayer", ())


def peft_parameters(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the parameters of peft's adapters in ``model``, by the adapter's name and their own.

    An adapter that was merged into the base counts: its layers still hold it.
    """
    found: dict[str, dict[str, Tensor]] = {}
    kind = _layer_class()
    layers: list[tuple[str, Any]] = [] if kind == () else [p for p in model.named_modules() if isinstance(p[1], kind)]
    for path, layer in layers:
        for key in layer.adapter_layer_names:
            kept = getattr(layer, key, None)
            for name, one in kept.items() if isinstance(kept, (nn.ModuleDict, nn.ParameterDict)) else ():
                own = dict(one.named_parameters()) if isinstance(one, nn.Module) else {"": one}
                found.setdefault(name, {}).update({f"{path}.{key}.{inner}": p for inner, p in own.items()})
    return found


def digests(model: nn.Module) -> dict[str, str]:
    """Return sha256 of the numbers of each of peft's adapters in ``model``, by its name."""
    made = {}
    for name, parameters in peft_parameters(model).items():
        digest = hashlib.sha256()
        for key in sorted(parameters):
            digest.update(key.encode())
            digest.update(parameters[key].detach().cpu().to(torch.float64).contiguous().numpy().tobytes())
        made[name] = digest.hexdigest()
    return made


def inside_peft(model: nn.Module, path: str) -> str:
    """Return the path of the layer of peft's that took a module of the base into itself, or ""."""
    while path := path.rpartition(".")[0]:
        if isinstance(model.get_submodule(path), _layer_class()):
            return path
    return ""


def notice_frozen(attachment: Attachment) -> None:
    """Say once, in training, that peft stopped training every adapter of ours: it freezes what is not its own."""
    if attachment.watch is None or attachment.told_frozen:
        return
    places: list[Any] = [one for _, one in attachment.watch.needed]
    places += [] if attachment.shared is None else [attachment.shared]
    if any(parameter.requires_grad for one in places for name, parameter in _of_adapters(one)):
        return
    attachment.told_frozen = True
    theirs = peft_parameters(attachment.watch.model)
    if theirs and any(p.requires_grad for own in theirs.values() for p in own.values()):
        logger.warning(
            "no adapter of hfadapt's trains (%s): peft froze them when it put %s on the model. "
            "hfadapt.unfreeze(model) trains both; hfadapt.freeze(model) says that none should",
            ", ".join(attachment.names),
            ", ".join(theirs),
        )


def _of_adapters(module: nn.Module) -> Any:
    from .slot import Slot

    return module.named_parameters() if isinstance(module, (Slot, nn.ModuleDict)) else ()
