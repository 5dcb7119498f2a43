"""Which searched values a recipe takes: it is read with them, as if the command line had set them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...errors import ConfigError
from .recipe import Recipe

__all__ = ["Probe", "Reads", "assignment"]

Probe = Callable[[Iterable[str]], Recipe]


class Reads:
    """Reads a recipe with searched values in place of its own.

    Args:
        probe: Reads the recipe without its search, with assignments as the command line gives them.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._known: set[tuple[str, str]] = set()
        self._known = {_named(error) for error in self._errors({})}

    def alone(self, path: str, value: Any, beside: Mapping[str, Any]) -> list[ConfigError]:
        """What the recipe has against one value, whatever the other searched values are.

        Args:
            path: Of the value.
            value: The one in question.
            beside: A value of each path that is searched: heads that do not divide the recipe's own size may well
                divide the sizes that are searched.
        """
        found = self._errors({path: value})
        if not found or not beside.keys() - {path}:
            return found
        still = {error.what for error in self._errors({**beside, path: value})}
        return [error for error in found if error.what in still]

    def together(self, values: Mapping[str, Any]) -> list[str]:
        """What the recipe has against these values of all paths, each in a few words."""
        return sorted({error.what or str(error) for error in self._errors(values)})

    def _errors(self, values: Mapping[str, Any]) -> list[ConfigError]:
        """Beside those that the recipe has without any searched value."""
        try:
            self._probe([assignment(path, value) for path, value in values.items()])
        except ConfigError as error:
            each = getattr(error, "found", None) or (error,)
            return [one for one in each if _named(one) not in self._known]
        return []


def assignment(path: str, value: Any) -> str:
    """``path=value`` as the command line would have it."""
    if isinstance(value, float):
        text = repr(value)
        # YAML 1.1 takes a number without a point for a word
        return f"{path}={text if '.' in text else text.replace('e', '.0e')}"
    return f"{path}={json.dumps(value, ensure_ascii=False)}"


def _named(error: ConfigError) -> tuple[str, str]:
    return error.what or str(error), str(error.where)
