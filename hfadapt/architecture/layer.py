"""One layer of a stack, with absolute paths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfadapt.architecture.maps import StackMap


def join(prefix: str, path: str) -> str:
    """Two module paths, of which either may be empty, as one."""
    return f"{prefix}.{path}" if prefix and path else prefix or path


@dataclass(frozen=True)
class AttentionMap:
    """One attention of a layer; every path is relative to the layer.

    Attributes:
        query, key, value: The three projections, or None where one linear makes them all.
        fused: That one linear, or None.
        output: The projection of the concatenated heads (W_o).
        module: The module that transformers hands to the attention function; "" is the layer itself.
        fused_layout: How a fused linear orders its outputs: "blocks" is [all q | all k | all v]; "heads" is
            q, k, v of head 0, then of head 1, and so on; "groups" is, for each key-value head, its queries,
            then its key, then its value; "unknown" must not be sliced.
    """

    query: str | None
    key: str | None
    value: str | None
    output: str
    module: str
    fused: str | None = None
    fused_layout: str = "blocks"

    @property
    def first(self) -> str:
        """The linear that reads the attention input: the query projection or the fused one."""
        return self.query or self.fused or ""


@dataclass(frozen=True)
class LayerMap:
    """One layer of a stack with absolute paths.

    Attributes:
        index: Its place in the stack, counted by calls.
        path: The layer module.
        call: Which call of that module this layer is; 0 except where layers are shared.
    """

    stack: StackMap
    index: int
    path: str
    call: int

    def absolute(self, relative: str | None) -> str | None:
        """A path relative to the layer as a path from the model; None stays None."""
        return None if relative is None else join(self.path, relative)

    @property
    def attention(self) -> AttentionMap:
        """Self-attention."""
        return self._attention(self.stack.attention)

    @property
    def cross_attention(self) -> AttentionMap | None:
        """Attention over the encoder's output, where there is one."""
        return None if self.stack.cross_attention is None else self._attention(self.stack.cross_attention)

    def _attention(self, attention: AttentionMap) -> AttentionMap:
        names = ("query", "key", "value", "fused", "output", "module")
        return replace(attention, **{name: self.absolute(getattr(attention, name)) for name in names})

    @property
    def ffn_in(self) -> tuple[str, ...]:
        """Linears that read the feed-forward input."""
        return tuple(join(self.path, name) for name in self.stack.ffn_in)

    @property
    def ffn_out(self) -> str:
        """Linear that ends the feed-forward part."""
        return join(self.path, self.stack.ffn_out)

    @property
    def attn_out_dropout(self) -> str | None:
        """Dropout leaf after the attention output linear."""
        return self.absolute(self.stack.attn_out_dropout)

    @property
    def cross_out_dropout(self) -> str | None:
        """Dropout leaf after the cross attention output linear."""
        return self.absolute(self.stack.cross_out_dropout)

    @property
    def ffn_out_dropout(self) -> str | None:
        """Dropout leaf after the feed-forward output linear."""
        return self.absolute(self.stack.ffn_out_dropout)

    @property
    def norms(self) -> dict[str, str]:
        """Role to absolute path."""
        return {role: join(self.path, path) for role, path in self.stack.norms.items()}

    @property
    def first_leaf(self) -> str:
        """The module that sees the layer's input first."""
        return join(self.path, self.stack.first_leaf)

    @property
    def linears(self) -> dict[str, str]:
        """Role to absolute path of every mapped linear, in the order they run."""
        roles: dict[str, str | None] = {}
        for prefix, attention in (("", self.attention), ("cross_", self.cross_attention)):
            for role in ("query", "key", "value", "fused", "output"):
                roles[prefix + role] = getattr(attention, role, None)
        for number, path in enumerate(self.ffn_in):
            roles["ffn_in" if number == 0 else f"ffn_in_{number}"] = path
        roles["ffn_out"] = self.ffn_out
        return {role: path for role, path in roles.items() if path is not None}
