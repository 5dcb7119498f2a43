"""What every method's config is: frozen, checked when it is made, and read from JSON strictly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..errors import ConfigError, did_you_mean
from .fields import KnownFields, default_as_text

__all__ = ["MethodConfig"]


@dataclass(frozen=True)
class MethodConfig(KnownFields):
    """Base of every method's config: frozen, and knowing only its own method.

    Args:
        layers: Which layers of each stack: ``"all"``, ``"first_half"``, ``"final_half"`` or a tuple of indices
            (negative ones count from the end).
        stack: Which stacks: ``"all"``, ``"decoder"``, or ``"encoder"`` for every other kind (text, vision, speech).
    """

    method: ClassVar[str] = ""

    layers: str | tuple[int, ...] = field(default="all", kw_only=True)
    stack: str = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        layers = self.layers
        words = ("all", "first_half", "final_half")
        if layers not in words and not (isinstance(layers, tuple) and layers and all(type(i) is int for i in layers)):
            self.fail("layers", layers, f"{', '.join(map(repr, words))} or a tuple of layer numbers")
        self.require_one_of("stack", ("all", "encoder", "decoder"))

    def fail(self, name: str, got: object, allowed: object, try_: str = "") -> None:
        """Raise the ``ConfigError`` of the field ``name``."""
        own = any(f.name == name for f in dataclasses.fields(self))
        raise ConfigError(
            f"bad {name}",
            where=f"{type(self).__name__}({name}=...)",
            got=repr(got),
            allowed=allowed,
            try_=try_ or (default_as_text(type(self), name) if own else "leave it out"),
        )

    def require_positive(self, *names: str) -> None:
        """Raise ``ConfigError`` unless each named field is a whole number of at least one."""
        for name in names:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                self.fail(name, value, "a whole number >= 1")

    def require_fraction(self, *names: str) -> None:
        """Raise ``ConfigError`` unless each named field lies in [0, 1)."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
                self.fail(name, value, "a number in [0, 1)")

    def require_one_of(self, name: str, allowed: Iterable[object]) -> None:
        """Raise ``ConfigError`` unless the named field is one of ``allowed``."""
        allowed = (allowed,) if isinstance(allowed, str) else tuple(allowed)
        value = getattr(self, name)
        if not any(_same(value, one) for one in allowed):
            hint = did_you_mean(value, [a for a in allowed if isinstance(a, str)]) if isinstance(value, str) else ""
            self.fail(name, value, ", ".join(map(repr, allowed)), hint)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON data, with ``method`` first."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"method": self.method, **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MethodConfig:
        """Build a config from ``to_dict``'s form.

        Raises:
            ConfigError: a field is unknown (the nearest one is named) or holds a value that is not allowed.
        """
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "method"}
        try:
            return cls(**given)
        except TypeError as error:
            none = dataclasses.MISSING
            required = [f.name for f in dataclasses.fields(cls) if f.default is none and f.default_factory is none]
            lacking = [name for name in required if name not in given]
            raise ConfigError(
                f"incomplete config: {error}",
                where=cls.__name__,
                got=dict(given),
                allowed=f"a value for each of {', '.join(required) or 'the fields'}",
                try_=", ".join(f"{name}=..." for name in lacking) or f"{cls.__name__}(), which has defaults for all",
            ) from None


def _same(value: object, allowed: object) -> bool:
    # 0 equals False, and a tensor compares element by element
    alike = isinstance(value, type(allowed)) and isinstance(value, bool) is isinstance(allowed, bool)
    return alike and value == allowed
