"""Which parameters train: by identity of modules, never by a piece of a name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from ..errors.inside import require_itself
from ..errors.names import names_of
from ..runtime.attachment import attachment, parameters_of, uncompiled

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["freeze", "freeze_base", "head_modules", "is_adapter", "trainable_parameters", "trained_base", "unfreeze"]


def head_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the modules that stand on top of the pretrained base and are new for a task.

    A model with output embeddings (a language model) has a pretrained head, which counts as base. What transformers
    calls a base itself has none, whatever part of it bears its prefix (WavTokenizer's encoder).
    """
    base = getattr(model, "base_model", model)
    kind = type(model)
    named = kind.__name__.endswith("Model") and "Head" not in kind.__name__  # GPT2DoubleHeadsModel has two
    is_base = named and kind.__module__.startswith("transformers.models.")
    if base is model or not isinstance(base, nn.Module) or is_base:
        return {}
    if hasattr(model, "get_output_embeddings") and model.get_output_embeddings() is not None:
        return {}
    inside = {id(m) for m in base.modules()}
    return {
        name: child
        for name, child in model.named_children()
        if id(child) not in inside and not name.startswith("hfadapt") and any(True for _ in child.parameters())
    }


def is_adapter(key: str) -> bool:
    """Say whether a parameter of that name is an adapter's."""
    return ".hfadapt." in f".{key}" or key.startswith("hfadapt_shared.")


def trained_base(model: PreTrainedModel) -> list[str]:
    """Return the names of the base's parameters that train, save for heads of which adapters have copies."""
    heads = tuple(f"{path}." for path in attachment(model).head_paths)
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not is_adapter(name) and not name.startswith(heads)
    ]


def freeze_base(model: PreTrainedModel) -> None:
    """Freeze everything but the adapters, which are not touched."""
    for name, parameter in model.named_parameters():
        if not is_adapter(name):
            parameter.requires_grad_(False)


def freeze(model: PreTrainedModel, names: str | Iterable[str] | None = None) -> None:
    """Stop training the adapters ``names`` (all of them by default), heads of their own included.

    Raises:
        AttachError: nothing is attached, or there is no adapter of that name.
    """
    _set(model, names, False)


def unfreeze(model: PreTrainedModel, names: str | Iterable[str] | None = None) -> None:
    """Train the adapters ``names`` (all of them by default).

    Raises:
        AttachError: nothing is attached, or there is no adapter of that name.
    """
    _set(model, names, True)


def _set(model: PreTrainedModel, names: str | Iterable[str] | None, train: bool) -> None:
    state = attachment(model)
    chosen = state.names if names is None else names_of(names)
    for name in chosen:
        state.require(name)
    for name in chosen:
        for parameter in parameters_of(model, name).values():
            parameter.requires_grad_(train)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimizer would be given, by name."""
    require_itself(model, where="hfadapt.trainable_parameters")
    return {name: p for name, p in uncompiled(model).named_parameters() if p.requires_grad}
