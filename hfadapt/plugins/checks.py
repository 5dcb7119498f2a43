"""What may be registered by each hook: whatever does not fit is named when it is registered, not when it is used."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["REGISTRIES"]


def _no_method(name: str, thing: object) -> str:
    from ..method.config import MethodConfig
    from ..method.method import Capabilities, Method, MethodPreset

    config = getattr(thing, "config_class", None)
    if isinstance(thing, MethodPreset):
        if not callable(thing.build):
            return "a preset whose build is a function"
    elif not isinstance(thing, Method):
        return "an instance of hfadapt.Method or hfadapt.MethodPreset"
    elif not (isinstance(config, type) and issubclass(config, MethodConfig) and getattr(config, "method", "") == name):
        return f"a method whose config_class is a MethodConfig with method = {name!r}"
    elif type(thing).place is Method.place or not isinstance(thing.capabilities, Capabilities):
        return "a method with a place of its own, and capabilities that are an hfadapt.Capabilities"
    words = [getattr(thing, key, None) for key in ("family", "paper", "summary", "tests")]
    if getattr(thing, "name", None) != name or not all(isinstance(word, str) for word in words):
        return f"one with name = {name!r}, whose family, paper, summary and tests are texts"
    return ""


def _no_function(name: str, thing: object) -> str:
    return "" if callable(thing) and not isinstance(thing, type) else "a function"


def _no_strategy(name: str, thing: object) -> str:
    from ..data import MixingStrategy

    fits = isinstance(thing, type) and issubclass(thing, MixingStrategy)
    return "" if fits else "a subclass of hfadapt.data.MixingStrategy"


def _no_class(name: str, thing: object) -> str:
    return "" if isinstance(thing, type) else "a class"


def _no_backend(name: str, thing: object) -> str:
    from hfadapt_kernels.backend import Implementation

    return "" if isinstance(thing, Implementation) else "an Implementation of hfadapt_kernels.backend"


#: For each hook: what one entry is called, and a function that says what it ought to be ("" where it is).
REGISTRIES: dict[str, tuple[str, Callable[[str, object], str]]] = {
    "register_methods": ("method", _no_method),
    "register_architectures": ("architecture", _no_function),
    "register_mixing_strategies": ("mixing strategy", _no_strategy),
    "register_regularizers": ("regularizer", _no_class),
    "register_backends": ("backend", _no_backend),
}
