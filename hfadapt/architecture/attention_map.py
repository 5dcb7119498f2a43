"""One attention of a layer, by the paths of its linears; or what stands in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


def join(prefix: str, path: str) -> str:
    """Two module paths, of which either may be empty, as one.

    Each ``^`` that the second begins with is a step up: of a layer whose norms stand in a list of their own (XLM),
    ``join("attentions.3", "^^.layer_norm1.3")`` is ``"layer_norm1.3"``.
    """
    up = len(path) - len(path.lstrip("^"))
    if up:
        prefix, path = ".".join(prefix.split(".")[:-up]), path[up + 1 :]
    return f"{prefix}.{path}" if prefix and path else prefix or path


@dataclass(frozen=True)
class AttentionMap:
    """One attention of a layer; every path is relative to the layer.

    Attributes:
        query, key, value: The three projections, or None where one linear makes them all.
        fused: That one linear, or None.
        output: The projection of the concatenated heads (W_o).
        module: The module that transformers hands to the attention function; "" is the layer itself.
        reads: The leaf that reads the attention's input where the query projection does not: DETR's is given positions
            too, low-rank pairs make the queries (MLA), or there is no attention at all (a state space, a gated
            convolution, linear attention).
        width: Entries that the output linear reads where they are not the stack's heads times the width of one; -1
            where `output` is a module that is no linear, so that there is nothing between heads and output.
        fused_layout: How a fused linear orders its outputs: "blocks" is [all q | all k | all v]; "heads" is
            q, k, v of head 0, then of head 1, and so on; "groups" is, for each key-value head, its queries,
            then its key, then its value; "unknown" must not be sliced.
        inside: Of a block, the linears that make the queries, the keys or the values of its attention function alone,
            the last where one reads another (MLA's ``q_b_proj``): role, path, and the outputs that do,
            ``(blocks, start, stop)``, start to stop in each of equal blocks, or () for all of them.
    """

    query: str | None
    key: str | None
    value: str | None
    output: str
    module: str
    fused: str | None = None
    fused_layout: str = "blocks"
    reads: str = ""
    width: int = 0
    inside: tuple[tuple[str, str, tuple[int, ...]], ...] = ()

    @property
    def first(self) -> str:
        """The leaf that reads the attention input: as a rule the query projection or the fused one."""
        return self.reads or self.query or self.fused or ""

    @property
    def is_block(self) -> bool:
        """No linear of it alone makes queries, keys or values: it has an input and an output."""
        return (self.query or self.fused) is None

    @property
    def linears(self) -> dict[str, str]:
        """Role to path of the linears that it names, in the order they run."""
        roles = {role: path for role in ("query", "key", "value", "fused") if (path := getattr(self, role)) is not None}
        return roles | {role: path for role, path, _ in self.inside} | {"output": self.output}

    def under(self, prefix: str) -> AttentionMap:
        """The same attention inside a module that holds the layer as `prefix`."""
        names = ("query", "key", "value", "fused", "output", "module", "reads")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        paths = {name: join(prefix, value) for name, value in given.items() if value or name == "module"}
        inside = tuple((role, join(prefix, path), part) for role, path, part in self.inside)
        return replace(self, inside=inside, **paths)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A pickle of an earlier version lacks what came later.
        vars(self).update({"reads": "", "width": 0, "inside": ()} | state)
