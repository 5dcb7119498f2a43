"""How several adapters act on one row: small immutable trees of adapter names, checked when built.

``Stack`` runs adapters one after another, ``Average`` mixes their effects with fixed weights, ``Fuse`` lets
AdapterFusion attend over them, and ``Parallel`` sends every row through each child and returns a larger batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from ..errors import CompositionError
from ..errors.limits import require_number

__all__ = [
    "Average",
    "Composition",
    "Fuse",
    "Node",
    "Parallel",
    "Stack",
    "adapter_names",
    "fuse_nodes",
    "parse",
    "steps_of",
    "to_json",
]

Node = Union[str, "Composition"]


class Composition:
    """A node of the tree; children are adapter names or other nodes."""

    allowed: tuple[type, ...] = (str,)

    def __init__(self, *children: Node) -> None:
        if not children:
            raise CompositionError(
                f"{type(self).__name__} has no children",
                where=type(self).__name__,
                got="nothing",
                allowed="one or more adapters",
                try_=f"{type(self).__name__}('a', 'b')",
            )
        for child in children:
            if not isinstance(child, (str, *self.allowed)):
                names = ", ".join(["an adapter name", *(t.__name__ for t in self.allowed if t is not str)])
                raise CompositionError(
                    f"{type(self).__name__} cannot hold {child!r}",
                    where=type(self).__name__,
                    got=repr(child),
                    allowed=names,
                    try_="flatten the composition",
                )
        self.children: tuple[Node, ...] = children

    def _key(self) -> tuple:
        return (type(self).__name__, self.children)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composition) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.children))})"


class Fuse(Composition):
    """AdapterFusion over two or more adapters (Pfeiffer et al. 2021)."""

    def __init__(self, *children: Node) -> None:
        super().__init__(*children)
        if len(children) < 2 or len(set(children)) != len(children):
            raise CompositionError(
                "Fuse needs at least two different adapters",
                where="Fuse",
                got=repr(children),
                allowed="two or more names",
                try_="Fuse('a', 'b')",
            )

    @property
    def key(self) -> str:
        """The name under which the fusion layer's parameters are kept."""
        return ",".join(str(c) for c in self.children)


class Average(Composition):
    """Weighted mean of the effects of adapters: ``v + sum_i w_i (a_i(v) - v)``.

    Args:
        children: Adapter names.
        weights: One finite number a child; equal by default. They are not normalised.

    Raises:
        CompositionError: a weight is missing, infinite or NaN.
    """

    def __init__(self, *children: Node, weights: tuple[float, ...] | list[float] | None = None) -> None:
        super().__init__(*children)
        given = (1 / len(children),) * len(children) if weights is None else weights
        if not isinstance(given, (tuple, list)) or len(given) != len(children):
            raise CompositionError(
                "Average needs one weight a child",
                where="Average",
                got=repr(given),
                allowed=len(children),
                try_="leave weights out for equal ones",
            )
        self.weights = tuple(
            float(require_number("weight", w, where=f"Average, {child!r}", error=CompositionError))
            for w, child in zip(given, children, strict=True)
        )

    def _key(self) -> tuple:
        return (*super()._key(), self.weights)


class Stack(Composition):
    """Adapters one after another at every slot, the first nearest to the base."""

    allowed = (str, Fuse, Average)


class Parallel(Composition):
    """Every row through each child; the batch grows at the first layer that has a delta, children outermost."""

    allowed = (str, Stack, Fuse, Average)


def steps_of(node: Node) -> tuple[Node, ...]:
    """Return what acts on a row, in order: names, ``Fuse`` and ``Average`` nodes.

    Raises:
        CompositionError: the node is a ``Parallel``, which has no single order; or it is neither a name nor a node.
    """
    if not isinstance(node, (str, Composition)):
        raise CompositionError(
            "not a composition",
            got=repr(node),
            allowed="an adapter's name, Stack, Fuse, Average",
            try_="hfadapt.Stack(...), or a list of names as task_ids, one a row",
        )
    if isinstance(node, Parallel):
        raise CompositionError(
            "Parallel cannot be nested or chosen per row",
            got=repr(node),
            try_="activate it for the whole batch: hfadapt.active(model, Parallel(...))",
        )
    return node.children if isinstance(node, Stack) else (node,)


def adapter_names(node: Node) -> Iterator[str]:
    """Yield every adapter name in the tree, left to right."""
    if isinstance(node, str):
        yield node
    else:
        for child in node.children:
            yield from adapter_names(child)


def fuse_nodes(node: Node) -> Iterator[Fuse]:
    """Yield every ``Fuse`` in the tree, left to right."""
    if isinstance(node, Fuse):
        yield node
    elif isinstance(node, Composition):
        for child in node.children:
            yield from fuse_nodes(child)


def to_json(node: Node) -> object:
    """Return the tree as plain JSON data; ``parse`` reads it back."""
    if isinstance(node, str):
        return node
    data: dict[str, object] = {type(node).__name__.lower(): [to_json(c) for c in node.children]}
    if isinstance(node, Average):
        data["weights"] = list(node.weights)
    return data


def parse(data: object) -> Node:
    """Build a tree from ``to_json``'s form.

    Raises:
        CompositionError: the data is not a composition.
    """
    kinds = {"stack": Stack, "fuse": Fuse, "average": Average, "parallel": Parallel}
    if isinstance(data, str):
        return data
    if isinstance(data, dict):
        for kind, cls in kinds.items():
            if kind in data and isinstance(data[kind], (list, tuple)) and set(data) <= {kind, "weights"}:
                children = [parse(child) for child in data[kind]]
                return cls(*children, weights=data["weights"]) if "weights" in data else cls(*children)
    raise CompositionError("not a composition", got=repr(data), allowed=f"a name or a map of {sorted(kinds)}")
