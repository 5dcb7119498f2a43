"""What may be registered as a method."""

from __future__ import annotations

from .config import MethodConfig
from .method import Capabilities, Method, MethodPreset

__all__ = ["no_method"]


def no_method(name: str, thing: object) -> str:
    """Say what ought to be registered in the place of ``thing``; "" for a method or a preset as it should be."""
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
