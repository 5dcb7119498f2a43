"""How several adapters act on one row: small immutable trees of adapter names, checked when built.

``Stack`` runs adapters one after another, ``Average`` mixes their effects with fixed weights, ``Arrow`` with weights
that each token chooses, ``Router`` with weights that a trained layer gives each row, ``Fuse`` lets AdapterFusion attend
over them, and ``Parallel`` sends every row through each child and returns a larger batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar, Union

from ..errors import CompositionError
from ..errors.limits import require_number

__all__ = [
    "Arrow",
    "Average",
    "Composition",
    "Fuse",
    "Node",
    "Parallel",
    "Router",
    "Stack",
    "adapter_names",
    "arrow_nodes",
    "fuse_nodes",
    "parse",
    "router_nodes",
    "steps_of",
    "to_json",
]

Node = Union[str, "Composition"]
_Kind = TypeVar("_Kind", bound="Composition")


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
        _require_different(self, "Fuse")

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


class Arrow(Composition):
    """Each token chooses among LoRAs at every linear, without training (Ostapenko et al. 2024, arXiv:2405.11157).

    The prototype of a LoRA at a linear is the direction of the inputs that its update changes most: the first right
    singular vector v of ``B A``, of length 1. A token's input x scores each LoRA by ``|v . x|``, whatever the sign; of
    the ``top_k`` highest, the effects are mixed by the softmax of their scores divided by ``temperature``. LoRAs that
    have no update at a linear are not chosen there. Rows need no task. The adapters' own modules, such as heads, have
    no prototypes: their outputs are averaged with equal weights.

    Args:
        children: Names of two or more LoRAs; their ranks, scales and linears may differ.
        top_k: How many a token uses at a linear; by default 4, as in the paper, or all if there are fewer.
        temperature: Of the softmax; the lower, the more weight has the best.

    Raises:
        CompositionError: fewer than two different adapters, ``top_k`` is not between 1 and their number, or the
            temperature is not a number above 0.
    """

    def __init__(self, *children: Node, top_k: int | None = None, temperature: float = 1.0) -> None:
        super().__init__(*children)
        _require_different(self, "Arrow")
        most = len(children)
        self.top_k = _top_k(top_k, min(4, most), most, "Arrow")
        found = require_number("temperature", temperature, where="Arrow", above=0, error=CompositionError)
        self.temperature = float(found)

    def _key(self) -> tuple:
        return (*super()._key(), self.top_k, self.temperature)


class Router(Composition):
    """Each row uses the adapters that a small trained layer gives it by what the row says, whoever its task is.

    The layer reads one state a row: the mean over the row's real tokens of the frozen base's input embeddings, brought
    to mean 0 and variance 1. Its linear map scores every adapter; of the ``top_k`` highest, the effects are mixed by
    the softmax of their scores: ``v + sum_i w_i (a_i(v) - v)`` at every place. Adapters of any method that can be
    averaged may be routed to, own modules such as heads included. ``hfadapt.add_router`` makes the layer; it belongs to
    the adapters in their order, so that nodes of another ``top_k`` over the same adapters share it.

    Args:
        children: Names of two or more adapters.
        top_k: How many a row uses; 2 by default. With 1 the weight is 1 whatever the score, which no gradient reaches:
            train with more, then serve with 1.

    Raises:
        CompositionError: fewer than two different adapters, or ``top_k`` is not between 1 and their number.
    """

    def __init__(self, *children: Node, top_k: int | None = None) -> None:
        super().__init__(*children)
        _require_different(self, "Router")
        self.top_k = _top_k(top_k, 2, len(children), "Router")

    @property
    def key(self) -> str:
        """The name under which the parameters of its layer are kept."""
        return ",".join(map(str, self.children))

    def _key(self) -> tuple:
        return (*super()._key(), self.top_k)


class Stack(Composition):
    """Adapters one after another at every slot, the first nearest to the base."""

    allowed = (str, Fuse, Average, Arrow, Router)


class Parallel(Composition):
    """Every row through each child; the batch grows at the first layer that has a delta, children outermost."""

    allowed = (str, Stack, Fuse, Average, Arrow, Router)


def _require_different(node: Composition, kind: str) -> None:
    """Raise ``CompositionError`` unless a node has two or more children, each once."""
    if len(node.children) < 2 or len(set(node.children)) != len(node.children):
        raise CompositionError(
            f"{kind} needs at least two different adapters",
            where=kind,
            got=repr(node.children),
            allowed="two or more names",
            try_=f"{kind}('a', 'b')",
        )


def _top_k(given: int | None, default: int, most: int, kind: str) -> int:
    if given is None:
        return default
    if type(given) is not int or not 1 <= given <= most:
        raise CompositionError(
            "cannot choose that many adapters",
            where=f"{kind}, top_k",
            got=repr(given),
            allowed=f"a whole number, 1 to {most}",
            try_="leave top_k out",
        )
    return given


def steps_of(node: Node) -> tuple[Node, ...]:
    """Return what acts on a row, in order: names, ``Fuse``, ``Average``, ``Arrow`` and ``Router`` nodes.

    Raises:
        CompositionError: the node is a ``Parallel``, which has no single order; or it is neither a name nor a node.
    """
    if not isinstance(node, (str, Composition)):
        raise CompositionError(
            "not a composition",
            where="composition",
            got=repr(node),
            allowed="an adapter's name, Stack, Fuse, Average, Arrow, Router",
            try_="hfadapt.Stack(...), or a list of names as task_ids, one a row",
        )
    if isinstance(node, Parallel):
        raise CompositionError(
            "Parallel cannot be nested or chosen per row",
            where="composition",
            got=repr(node),
            allowed="Stack, Fuse, Average, Arrow and Router inside others or in task_ids",
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


def arrow_nodes(node: Node) -> Iterator[Arrow]:
    """Yield every ``Arrow`` in the tree, left to right."""
    yield from _nodes(node, Arrow)


def fuse_nodes(node: Node) -> Iterator[Fuse]:
    """Yield every ``Fuse`` in the tree, left to right."""
    yield from _nodes(node, Fuse)


def router_nodes(node: Node) -> Iterator[Router]:
    """Yield every ``Router`` in the tree, left to right."""
    yield from _nodes(node, Router)


def _nodes(node: Node, kind: type[_Kind]) -> Iterator[_Kind]:
    if isinstance(node, kind):
        yield node
    elif isinstance(node, Composition):
        for child in node.children:
            yield from _nodes(child, kind)


def to_json(node: Node) -> object:
    """Return the tree as plain JSON data; ``parse`` reads it back."""
    if isinstance(node, str):
        return node
    data: dict[str, object] = {type(node).__name__.lower(): [to_json(c) for c in node.children]}
    for option in _OPTIONS.get(type(node), ()):
        value = getattr(node, option)
        data[option] = list(value) if isinstance(value, tuple) else value
    return data


_ALL: tuple[type[Composition], ...] = (Stack, Fuse, Average, Arrow, Router, Parallel)
_KINDS = {kind.__name__.lower(): kind for kind in _ALL}
# What a node holds beside its children.
_OPTIONS: dict[type[Composition], tuple[str, ...]] = {
    Average: ("weights",),
    Arrow: ("top_k", "temperature"),
    Router: ("top_k",),
}


def parse(data: object) -> Node:
    """Build a tree from ``to_json``'s form.

    Raises:
        CompositionError: the data is not a composition.
    """
    if isinstance(data, str):
        return data
    if isinstance(data, dict):
        for kind, cls in _KINDS.items():
            if kind in data and isinstance(data[kind], (list, tuple)) and set(data) <= {kind, *_OPTIONS.get(cls, ())}:
                children = [parse(child) for child in data[kind]]
                return cls(*children, **{option: data[option] for option in data if option != kind})
    raise CompositionError(
        "not a composition",
        where="composition",
        got=repr(data),
        allowed=f"a name or a map of {sorted(_KINDS)}",
        try_="{'stack': ['a', 'b']}, as hfadapt.save writes it",
    )
