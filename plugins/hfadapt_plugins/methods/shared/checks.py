"""Checks that several configs make."""

from __future__ import annotations

from hfadapt import MethodConfig
from hfadapt_kernels import ACTIVATIONS, get_activation
from hfadapt_kernels.errors import UnsupportedError

__all__ = ["require_activation", "require_scale"]


def require_activation(config: MethodConfig, *names: str) -> None:
    """Raise ``ConfigError`` unless each named field is a known activation; aliases are replaced by their name."""
    for name in names:
        value = getattr(config, name)
        try:
            # an op's call may name an activation by its code, a config may not
            found = get_activation(repr(value) if isinstance(value, int) else value).name
        except (UnsupportedError, TypeError):
            config.require_one_of(name, tuple(ACTIVATIONS))
        else:
            object.__setattr__(config, name, found)


def require_scale(config: MethodConfig, name: str = "scale") -> None:
    """Raise ``ConfigError`` unless the field is a number, ``"learned"`` or ``"channel"``."""
    value = getattr(config, name)
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or value in ("learned", "channel")):
        config.fail(name, value, "a number, 'learned' or 'channel'")
