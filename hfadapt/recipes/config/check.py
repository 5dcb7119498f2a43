"""Turn a tree into typed values: dataclasses, numbers, words. Strict, and never stopping at the first problem."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from ...errors import ConfigError, did_you_mean
from ...errors.limits import finite, require_number
from .recipe import NO_KEY
from .tree import Node, Problems

__all__ = ["BAD", "fields_of", "in_range", "known_keys", "mapping_of", "to_dataclass", "value_of"]

T = TypeVar("T")
_MOST_NAMES = 40


class _Bad:
    """Stands for a value whose problem was noted."""

    def __repr__(self) -> str:
        return "BAD"


BAD: Any = _Bad()


def fields_of(thing: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """Names that a class or function takes, each with its type and whether it must be given."""
    if dataclasses.is_dataclass(thing):
        hints = _hints(thing)
        missing = dataclasses.MISSING
        return {
            f.name: (hints.get(f.name, Any), f.default is missing and f.default_factory is missing)
            for f in dataclasses.fields(thing)
            if f.init and NO_KEY not in f.metadata
        }
    hints = _hints(thing.__init__ if inspect.isclass(thing) else thing)
    return {
        name: (hints.get(name, Any), parameter.default is parameter.empty)
        for name, parameter in inspect.signature(thing).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _hints(thing: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(thing)
    except (NameError, TypeError):
        hints = {}
    for owner in reversed(thing.__mro__ if inspect.isclass(thing) else [thing]):
        scope = vars(sys.modules[owner.__module__])
        for name, annotation in vars(owner).get("__annotations__", {}).items():
            try:
                hints[name] = eval(annotation, scope) if isinstance(annotation, str) else annotation
            except NameError:
                # Named for type checkers only: any value passes here, and the class itself may still refuse it.
                hints[name] = Any
    return hints


def known_keys(node: Node, known: typing.Iterable[str], problems: Problems, what: str = "key") -> None:
    """Note every key of a mapping that is not known, with the nearest that is."""
    known = list(known)
    for key, child in node.items():
        if key not in known:
            line = Node(None, child.path, node.key_lines.get(key, child.line))
            nearest = did_you_mean(key, known)
            problems.add(
                line,
                f"unknown {what} {key!r}",
                got=key,
                allowed=_some(known, key),
                try_=nearest or "leave it out, or one of these",
            )


def _some(known: list[str], near: str) -> str:
    """All names that are known, or of many the nearest."""
    if len(known) <= _MOST_NAMES:
        return ", ".join(known)
    nearest = difflib.get_close_matches(near, known, n=_MOST_NAMES // 2, cutoff=0)
    return f"{', '.join(nearest)} and {len(known) - len(nearest)} more"


def to_dataclass(node: Node, cls: type[T], problems: Problems, skip: tuple[str, ...] = ()) -> T:
    """Build a dataclass from a mapping.

    Args:
        node: the mapping.
        cls: the dataclass; its field types are checked.
        problems: unknown keys, missing keys and mistyped values are noted here; ``BAD`` is returned then.
        skip: keys and fields that someone else sets.
    """
    values = mapping_of(node, cls, problems, skip)
    if values is BAD or any(value is BAD for value in values.values()):
        return BAD
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        problems.add_error(node, error)
        return BAD


def mapping_of(node: Node, thing: Callable[..., Any], problems: Problems, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The checked values of a mapping that has the fields of ``thing``; mistyped ones are ``BAD``."""
    if not isinstance(node.value, dict):
        problems.add(
            node,
            "expected a mapping",
            got=node.kind,
            allowed=f"a mapping of {_some(list(fields_of(thing)), '')}",
            try_=f"{node.path.rpartition('.')[2] or 'key'}: {{...}}",
        )
        return BAD
    fields = {name: field for name, field in fields_of(thing).items() if name not in skip}
    known_keys(node, [*fields, *skip], problems)
    values = {key: value_of(child, fields[key][0], problems) for key, child in node.items() if key in fields}
    for name, (_, required) in fields.items():
        if required and name not in node.value:
            problems.add(
                node,
                f"key {name!r} is missing",
                got=", ".join(node.value) or "no key",
                allowed=_say(fields[name][0]),
                try_=f"{name}: {_example(fields[name][0])}",
            )
            values[name] = BAD
    return values


def in_range(node: Node, name: str, value: Any, range_: Mapping[str, Any], problems: Problems) -> Any:
    """A checked value that also lies in a range of ``require_number``; ``BAD`` and a note when it does not."""
    if value is BAD:
        return BAD
    try:
        return require_number(name, value, where="", **range_)
    except ConfigError as error:
        problems.add_error(node, error)
        return BAD


def value_of(node: Node, hint: Any, problems: Problems) -> Any:
    """A value checked against a type; ``BAD`` and a note when it does not fit."""
    if dataclasses.is_dataclass(hint) and isinstance(node.value, dict):
        return to_dataclass(node, typing.cast(type, hint), problems)
    value = _fit(node, hint, problems)
    if value is BAD and isinstance(node.word, str):
        # one word where a list of words may stand
        value = _fit(Node([node], node.path, node.line), hint, Problems(problems.source))
    if value is BAD:
        problems.add(
            node,
            "wrong type",
            got=node.kind,
            allowed=_say(hint),
            try_=f"{node.path.rpartition('.')[2]}: {_example(hint)}",
        )
    return value


def _fit(node: Node, hint: Any, problems: Problems) -> Any:
    origin, arguments, value = get_origin(hint), get_args(hint), node.value
    if hint is Any or isinstance(hint, TypeVar):
        return node.plain_value()
    if origin in (Union, types.UnionType):
        if any(_is_enum(one) for one in arguments):
            arguments = tuple(one for one in arguments if one is not str)  # written beside it for the enum's own words
        fits = (_fit(node, one, Problems(problems.source)) for one in _narrow_first(arguments))
        return next((fit for fit in fits if fit is not BAD), BAD)
    if origin is Literal:
        return value if value in arguments and not isinstance(value, (dict, list)) else BAD
    if origin in (list, tuple, set) or _is(origin, typing.get_origin(typing.Sequence[int])):
        return _sequence(node, origin, arguments, problems)
    if origin is not None and _is(origin, dict, Mapping):
        return _mapping(node, arguments, problems)
    if hint in (None, type(None)):
        return None if value is None else BAD
    return _scalar(node, hint)


def _scalar(node: Node, hint: Any) -> Any:
    value = node.value
    if hint is bool:
        return value if isinstance(value, bool) else BAD
    if hint is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else BAD
    if hint is float:
        # YAML 1.1 reads 1e-4 as a word, because it has no point.
        number = _number(value) if isinstance(value, str) and node.plain else value
        return float(number) if finite(number) else BAD
    if hint is str:
        return node.word if isinstance(node.word, str) else BAD
    if _is_enum(hint):
        return node.word if any(node.word == one.value for one in hint) else BAD
    if hint in (dict, list):
        return node.plain_value() if isinstance(value, hint) else BAD
    # Paths and classes of other libraries: their own constructors know best.
    return node.plain_value()


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return BAD


def _sequence(node: Node, origin: Any, arguments: tuple[Any, ...], problems: Problems) -> Any:
    if not isinstance(node.value, list):
        return BAD
    item = arguments[0] if arguments else Any
    values = [_fit(child, item, problems) for child in node.value]
    if any(value is BAD for value in values):
        return BAD
    return list(values) if origin is list else tuple(values)


def _mapping(node: Node, arguments: tuple[Any, ...], problems: Problems) -> Any:
    if not isinstance(node.value, dict):
        return BAD
    item = arguments[1] if len(arguments) == 2 else Any
    values = {key: _fit(child, item, problems) for key, child in node.items()}
    return BAD if any(value is BAD for value in values.values()) else values


def _is(origin: Any, *classes: Any) -> bool:
    return inspect.isclass(origin) and any(inspect.isclass(cls) and issubclass(origin, cls) for cls in classes)


def _is_enum(hint: Any) -> bool:
    return get_origin(hint) is None and inspect.isclass(hint) and issubclass(hint, enum.Enum)


def _narrow_first(arguments: tuple[Any, ...]) -> list[Any]:
    """A union's members so that ``1e-4`` becomes a number before it is taken for a word."""
    rank = {type(None): 0, bool: 1, int: 2, float: 3, str: 9}
    return sorted(arguments, key=lambda one: rank.get(one, 5))


def _say(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if any(_is_enum(one) for one in arguments):
            arguments = tuple(one for one in arguments if one is not str)
        return " or ".join(_say(one) for one in arguments)
    if _is_enum(hint):
        return ", ".join(str(one.value) for one in hint)
    if origin is Literal:
        return ", ".join(map(repr, arguments))
    if origin is not None and arguments:
        inner = ", ".join(_say(one) for one in arguments if one is not Ellipsis)
        return f"a mapping to {_say(arguments[-1])}" if _is(origin, dict, Mapping) else f"a list of {inner}"
    words = {
        int: "a whole number",
        float: "a number that is finite",
        str: "a word",
        bool: "true or false",
        type(None): "nothing",
    }
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _example(hint: Any) -> str:
    """A value of a type, as a recipe would write it."""
    origin, arguments = get_origin(hint), [one for one in get_args(hint) if one not in (Ellipsis, type(None))]
    if origin in (Union, types.UnionType):
        return _example(_narrow_first(tuple(arguments))[0]) if arguments else "null"
    if _is_enum(hint):
        return str(next(iter(hint)).value)
    if origin is Literal:
        return str(arguments[0])
    if origin is not None and _is(origin, dict, Mapping):
        return f"{{name: {_example(arguments[-1])}}}"
    if origin is not None and arguments:
        return f"[{_example(arguments[0])}]"
    return {int: "8", float: "0.1", bool: "true", str: "word"}.get(hint, "...")
