"""What may be registered by each hook: whatever does not fit is named when it is registered, not when it is used."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name

__all__ = ["REGISTRIES"]


def _asked(place: str) -> Callable[[str, object], str]:
    """The function at ``module:name``, found when it is first asked: what it knows stands in a room above this one."""

    def says(name: str, thing: object) -> str:
        return resolve_name(place)(name, thing)

    return says


def _no_function(name: str, thing: object) -> str:
    return "" if callable(thing) and not isinstance(thing, type) else "a function"


def _no_backend(name: str, thing: object) -> str:
    from hfadapt_kernels.backend import Implementation

    return "" if isinstance(thing, Implementation) else "an Implementation of hfadapt_kernels.backend"


#: For each hook: what one entry is called, and a function that says what it ought to be ("" where it is).
REGISTRIES: dict[str, tuple[str, Callable[[str, object], str]]] = {
    "register_methods": ("method", _asked("hfadapt.method.checks:no_method")),
    "register_architectures": ("architecture", _no_function),
    "register_mixing_strategies": ("mixing strategy", _asked("hfadapt.data.mixing:no_strategy")),
    "register_regularizers": ("regularizer", _asked("hfadapt.training.regularizers.regularizer:no_regularizer")),
    "register_metrics": ("metric", _asked("hfadapt.multitask.metrics:no_metric")),
    "register_heads": ("head", _asked("hfadapt.multitask.heads.base:no_head")),
    "register_formats": ("format", _asked("hfadapt.adapters.formats:no_format")),
    "register_backends": ("backend", _no_backend),
}
