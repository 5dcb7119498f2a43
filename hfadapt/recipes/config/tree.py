"""A recipe's text as a tree whose every value knows the line it stands on, and overrides put into that tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from ...errors import ConfigError, HFAdaptError, did_you_mean

__all__ = ["Node", "Problems", "override", "parse"]

_RESOLVER = yaml.resolver.Resolver()


class Problems:
    """Collects what is wrong, so that everything is reported at once."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._found: list[tuple[int, ConfigError]] = []

    def add(self, node: Node, what: str, *, got: object, allowed: object, try_: str) -> None:
        """Note a problem at a node; all parts of an error of ours are asked for."""
        self._found.append((node.line or 0, ConfigError(what, where=node.place, got=got, allowed=allowed, try_=try_)))

    def add_error(self, node: Node, error: Exception) -> None:
        """Note what refused the values of a node, with the parts that its error has."""
        if isinstance(error, HFAdaptError) and error.what:
            where = f"{node.place}: {error.where}" if error.where else node.place
            placed = ConfigError(error.what, where=where, got=error.got, allowed=error.allowed, try_=error.try_)
        else:
            placed = ConfigError(
                str(error) or type(error).__name__,
                where=node.place,
                got=node.kind,
                allowed="what the class behind this key takes",
                try_="leave out what it names, for its default",
            )
        self._found.append((node.line or 0, placed))

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self) -> None:
        """Raise one ``ConfigError`` that lists every problem in the order of lines, and holds each in ``found``."""
        if not self._found:
            return
        found = tuple(error for _, error in sorted(self._found, key=lambda f: f[0]))
        head = f"{self.source}: {len(found)} problem{'s' if len(found) > 1 else ''}"
        whole = ConfigError("\n".join([head, *(f"  {error}" for error in found)]))
        whole.found = found
        raise whole


# Setting to the key of its mapping that a word alone stands for.
_SHORT_FOR = {"method": "method", "mixing": "strategy", "strategy": "name", "regularizer": "name", "head": "kind"}


@dataclass
class Node:
    """A value with its place.

    Args:
        value: a scalar, a list of nodes, or a dict from name to node.
        path: dotted path from the root, as an override would write it.
        line: counted from 1; ``None`` for a value given on the command line.
        plain: the scalar was written without quotes (``1e-4`` may then be a number).
        key_lines: lines of a mapping's keys.
        text: the scalar as it was written (``no``, which YAML 1.1 reads as false).
    """

    value: Any
    path: str = ""
    line: int | None = 1
    plain: bool = True
    key_lines: dict[str, int | None] = field(default_factory=dict)
    text: str = ""

    @property
    def word(self) -> Any:
        """The value, but what YAML took for true or false as it was written: ``no`` and ``off`` are words too."""
        return self.text if isinstance(self.value, bool) and self.text else self.value

    @property
    def place(self) -> str:
        """Where the value stands, for messages: ``line 3 (training.learning_rate)``."""
        at = "command line" if self.line is None else f"line {self.line}"
        return f"{at} ({self.path})" if self.path else at

    @property
    def kind(self) -> str:
        """What the value is, in words."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            return "a list"
        written = self.text if isinstance(self.value, bool) and self.text else repr(self.value)
        return f"{written} ({type(self.value).__name__})" if self.value is not None else "nothing"

    def items(self) -> Iterator[tuple[str, Node]]:
        """Names and nodes of a mapping."""
        yield from self.value.items()

    def to_yaml(self) -> str:
        """The tree as YAML that reads back to the same values: scalars stand as they were written."""
        return yaml.serialize(_raw(self), Dumper=yaml.SafeDumper, allow_unicode=True, width=120)

    def plain_value(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain_value() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain_value() for node in self.value]
        return self.value


def parse(text: str, problems: Problems, *, path: str = "", command_line: bool = False) -> Node:
    """Read YAML into a tree.

    Repeated keys and keys that are no strings are noted in ``problems``; text that is no YAML raises at once, as
    nothing after it can be trusted.

    Raises:
        ConfigError: the text is no YAML.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{problems.source}, line {mark.line + 1}" if mark else problems.source
        raise ConfigError(
            f"not valid YAML: {getattr(error, 'problem', None) or error}",
            where=where,
            got=repr("".join(text.splitlines()[mark.line : mark.line + 1]))[:80] if mark else f"{len(text)} characters",
            allowed="YAML: 'key: value', with what belongs to a key indented by spaces",
            try_="quotes around a value that holds ': ', '#' or brackets",
        ) from error
    if root is None:
        return Node(None, path, None if command_line else 1)
    return _convert(root, path, yaml.SafeLoader(""), problems, command_line)


def _convert(raw: yaml.Node, path: str, loader: yaml.SafeLoader, problems: Problems, command_line: bool) -> Node:
    line = None if command_line else raw.start_mark.line + 1
    if isinstance(raw, yaml.SequenceNode):
        items = [
            _convert(child, f"{path}[{index}]", loader, problems, command_line) for index, child in enumerate(raw.value)
        ]
        return Node(items, path, line)
    if not isinstance(raw, yaml.MappingNode):
        plain = getattr(raw, "style", None) is None
        return Node(loader.construct_object(raw), path, line, plain=plain, text=raw.value)
    node = Node({}, path, line)
    for raw_key, raw_value in raw.value:
        key = _convert(raw_key, path, loader, problems, command_line)
        if not isinstance(key.value, str):
            problems.add(key, "a key must be a word", got=key.kind, allowed="a word", try_=f"{key.text!r}: ...")
            continue
        child = _convert(raw_value, f"{path}.{key.value}" if path else key.value, loader, problems, command_line)
        if key.value in node.value:
            first = node.key_lines[key.value]
            problems.add(
                Node(None, child.path, key.line),
                "key is given twice",
                got=f"first on line {first}",
                allowed="each key once",
                try_="drop one of the two",
            )
            continue
        # The key's line, not the value's: a mapping starts below its key.
        if isinstance(child.value, (dict, list)):
            child.line = key.line
        node.value[key.value] = child
        node.key_lines[key.value] = key.line
    return node


def _raw(node: Node) -> yaml.Node:
    if isinstance(node.value, dict):
        pairs = [(yaml.ScalarNode("tag:yaml.org,2002:str", key), _raw(child)) for key, child in node.items()]
        return yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=False)
    if isinstance(node.value, list):
        return yaml.SequenceNode("tag:yaml.org,2002:seq", [_raw(child) for child in node.value], flow_style=False)
    text = node.text or ("null" if node.value is None else str(node.value))
    if not node.plain:
        return yaml.ScalarNode("tag:yaml.org,2002:str", text, style='"')
    return yaml.ScalarNode(_RESOLVER.resolve(yaml.ScalarNode, text, (True, False)), text)


def override(root: Node, assignment: str, problems: Problems) -> None:
    """Put ``path.to.key=value`` into the tree; the value is read as YAML.

    Items of a list are addressed by number or by their ``name``: ``tasks.sms_spam.max_length=32``.
    """
    path, equals, text = assignment.partition("=")
    path = path.strip()
    place = Node(None, path or assignment, None)
    if not equals or not path:
        problems.add(
            place,
            "not an override",
            got=repr(assignment),
            allowed="key.sub=value",
            try_="training.learning_rate=1e-4",
        )
        return
    *parents, last = path.split(".")
    at = root
    for depth, name in enumerate(parents):
        below = _step(at, name, problems, place)
        if below is None:
            return
        _lengthen(below, name if isinstance(at.value, dict) else at.path.rpartition(".")[2])
        at = below
        at.path = at.path or ".".join(parents[: depth + 1])
    value = parse(text, problems, path=path, command_line=True)
    if isinstance(at.value, list):
        target = _item(at, last, problems, place)
        if target is not None:
            at.value[at.value.index(target)] = value
        return
    if at.value is None:
        at.value = {}
    if not isinstance(at.value, dict):
        problems.add(
            place,
            f"{at.path or 'the recipe'} is no mapping",
            got=at.kind,
            allowed=f"{at.path}=VALUE",
            try_=f"leave {last!r} out of the path",
        )
        return
    at.value[last] = value


def _lengthen(node: Node, key: str) -> None:
    """Write out ``method: lora`` as the mapping that it is short for, to which ``method.r=4`` adds."""
    if isinstance(node.value, str) and key in _SHORT_FOR:
        word = Node(node.value, node.path, node.line, node.plain, text=node.text)
        node.value = {_SHORT_FOR[key]: word}


def _step(at: Node, name: str, problems: Problems, place: Node) -> Node | None:
    if at.value is None:
        at.value = {}
    if isinstance(at.value, list):
        return _item(at, name, problems, place)
    if isinstance(at.value, dict):
        # A mapping that the recipe leaves out is made; whether its name is known is checked with all other keys.
        return at.value.setdefault(name, Node({}, f"{at.path}.{name}" if at.path else name, None))
    problems.add(
        place,
        f"{at.path} is no mapping and no list",
        got=at.kind,
        allowed=f"{at.path}=VALUE",
        try_=f"leave {name!r} out of the path",
    )
    return None


def _item(at: Node, name: str, problems: Problems, place: Node) -> Node | None:
    if name.isdecimal() and int(name) < len(at.value):
        return at.value[int(name)]
    names = []
    for index, item in enumerate(at.value):
        own = item.value.get("name") if isinstance(item.value, dict) else item
        names.append(own.value if own is not None else None)
        if names[-1] == name:
            if not isinstance(item.value, dict):
                # `- sms_spam` is short for a mapping with that name.
                at.value[index] = Node({"name": item}, item.path, item.line)
            return at.value[index]
    known = [str(known) for known in names if known is not None]
    problems.add(
        place,
        f"{at.path} has no item {name!r}",
        got=name,
        allowed=", ".join([*known, f"0..{len(at.value) - 1}"]),
        try_=did_you_mean(name, known) or "one of these",
    )
    return None
