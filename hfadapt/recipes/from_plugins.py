"""What plugins add to a run: callbacks of its training, and sections of the adapter's card."""

from __future__ import annotations

from typing import Any

from ..plugins import loading

__all__ = ["callbacks_of_plugins", "card_sections"]


def callbacks_of_plugins(arguments: Any, model: Any, tasks: Any) -> list[Any]:
    """The callbacks of the hook ``configure_training``, all plugins' together."""
    found = loading.call_each("configure_training", _no_callbacks, args=arguments, model=model, tasks=tasks)
    return [callback for _, group in found for callback in group]


def card_sections(model: Any) -> tuple[str, ...]:
    """The sections of the hook ``model_card_sections``; what a plugin fails to say changes nothing in what is saved."""
    found = loading.call_each("model_card_sections", _no_sections, strict=False, model=model)
    return tuple(section for _, sections in found for section in sections)


def _no_sections(found: Any) -> str:
    fits = isinstance(found, (list, tuple)) and all(isinstance(section, str) for section in found)
    return "" if fits else "None or a list of Markdown texts"


def _no_callbacks(found: Any) -> str:
    from transformers import TrainerCallback

    fits = isinstance(found, (list, tuple)) and all(isinstance(callback, TrainerCallback) for callback in found)
    return "" if fits else "None or a list of TrainerCallback objects"
