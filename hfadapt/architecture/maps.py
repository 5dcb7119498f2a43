"""Where the parts of a transformer are: one frozen map of paths, the same for every model family.

An adaptation method never asks what kind of model it is given. It asks a map: which linear makes the queries of
layer 3, which norm closes the feed-forward part, does the norm stand before or after. Maps of known families are
data in plugins (``register_architectures``); an unknown model is mapped by watching its data flow
(:mod:`hfadapt.architecture.probe`).

Paths inside a :class:`StackMap` are relative to one layer (:func:`join` says how); those of a :class:`LayerMap` are
absolute: ``model.get_submodule(path)`` works on the model that was given to :func:`hfadapt.architecture.resolve`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import ArchitectureError, RegistryError, did_you_mean
from .attention_map import AttentionMap, join
from .linears import is_linear

if TYPE_CHECKING:
    from torch import nn

STYLES = ("post", "pre", "sandwich", "parallel")
KINDS = ("encoder", "decoder", "text", "vision", "speech")
NORM_ROLES = (
    "pre_attention",
    "pre_cross",
    "pre_ffn",
    "post_attention",
    "post_cross",
    "post_ffn",
    "sandwich_attention",
    "sandwich_cross",
    "sandwich_ffn",
)


class NoSuchStackError(RegistryError, KeyError):
    """A map has no stack of that name; a ``KeyError`` too, as of other mappings."""

    __str__ = Exception.__str__  # KeyError's quotes the message


@dataclass(frozen=True)
class StackMap:
    """A run of equal layers. Paths inside a layer are relative to it; `layer_paths`, `final_norm` and
    `embedding` are relative to the model.

    Attributes:
        path: The ModuleList that holds the layers.
        layer_paths: The layer modules in the order they run; a shared module (ALBERT) appears once a call.
        kind: "encoder", "decoder", "text", "vision" or "speech".
        causal: Whether a position sees only those before it.
        style: "post" is norm(h + sublayer(h)); "pre" is h + sublayer(norm(h)); "sandwich" norms the sub-layer's
            output before the sum (with or without a norm before it: see `norms`); "parallel" is
            h + attention(norm(h)) + ffn(norm(h)).
        attention: Self-attention, or what mixes tokens in its place (`AttentionMap.is_block`); None for none.
        ffn_in: Linears that read the feed-forward input (two where it is gated by separate linears). Where the part
            is a block of another kind, such as a mixture of experts, that module stands here and as `ffn_out`. Both
            are empty where the layer has no such part.
        num_heads, num_kv_heads, head_dim: Of its attention; 0 where what mixes tokens has no heads.
        ffn_gated_in_one: One ffn_in linear makes gate and value together, so its output is twice `ffn_size`.
        attn_out_dropout, cross_out_dropout, ffn_out_dropout: The last leaf after the output linear that takes its
            outputs one by one, a dropout or a learned scale, where one exists that serves nothing else.
        norms: Role (see `NORM_ROLES`) to path.
        flat_ffn: The feed-forward part sees [B*T, D] instead of [B, T, D] (OPT).
        final_norm: The norm after the last layer, or None.
        projection_out: A linear after `final_norm` that gives the last hidden state (OPT-350m), or None.
        embedding: The word embedding that is really called, or None where the stack starts from no token ids.
        others: Layers that are made otherwise (a dense one among mixtures of experts), by their number: the stack as
            such a layer has it, with attention, feed-forward part and norms of its own.
        left_out: Layers in which no slots were found, by their number, and why.
        value_dim: Width of a value's head where it is not `head_dim`, that of a query's and a key's (MLA); else 0.
        rows_known: The first axis of the hidden state is the batch's; else the tokens of all rows stand in one list,
            or the axis is something else, which is then tried before rows of several adapters meet.
        time_first, listed, channels_first: The hidden state is [T, B, D] (FSMT), [N, D], the tokens of all rows in one
            list (or tokens that never see another, of any rows), or [B, D, height, width] (ViTDet).
        reads_shared_table: The method of the attention module that gives a table which all rows share (relative
            positions) to the query and key projections (DeBERTa v3), or "".
    """

    path: str
    layer_paths: tuple[str, ...]
    kind: str
    causal: bool
    style: str
    attention: AttentionMap | None
    ffn_in: tuple[str, ...]
    ffn_out: str
    norms: Mapping[str, str] = field(hash=False)
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    cross_attention: AttentionMap | None = None
    attn_out_dropout: str | None = None
    cross_out_dropout: str | None = None
    ffn_out_dropout: str | None = None
    ffn_gated_in_one: bool = False
    flat_ffn: bool = False
    final_norm: str | None = None
    projection_out: str | None = None
    embedding: str | None = None
    others: Mapping[int, StackMap] = field(default_factory=dict, hash=False)
    left_out: Mapping[int, str] = field(default_factory=dict, hash=False, compare=False)
    reads_shared_table: str = field(default="", compare=False)
    value_dim: int = 0
    rows_known: bool = True
    time_first: bool = False
    listed: bool = False
    channels_first: bool = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A pickle of an earlier version lacks what came later.
        flags = dict.fromkeys(("time_first", "listed", "channels_first"), False)
        vars(self).update({"others": {}, "left_out": {}, "value_dim": 0, "rows_known": True} | flags | state)

    @property
    def ffn_is_block(self) -> bool:
        """The feed-forward part is one module that is no linear: it has an input and an output, and nothing between."""
        return bool(self.ffn_out) and self.ffn_in == (self.ffn_out,)

    @property
    def num_layers(self) -> int:
        """Layers as the paper counts them: calls, not modules."""
        return len(self.layer_paths)

    @property
    def calls_per_module(self) -> int:
        """How often one layer module runs in a forward; more than 1 means shared layers (ALBERT)."""
        return self.num_layers // len(set(self.layer_paths))

    @property
    def first_leaf(self) -> str:
        """The module of a layer that sees the layer's input first: a norm, else the query projection.

        "", the layer itself, where its attention is not known.
        """
        if self.attention is None:
            return ""
        return self.norms.get("pre_attention") or self.attention.first

    @property
    def top(self) -> str:
        """Absolute path of the module whose output is the stack's last hidden state.

        With shared layers this is a module that runs several times; its last call counts.
        """
        if self.projection_out or self.final_norm:
            return self.projection_out or self.final_norm or ""
        last, number = self.layer_paths[-1], self.num_layers - 1
        norms = {} if number in self.left_out else self.others.get(number, self).norms
        return join(last, norms["post_ffn"]) if "post_ffn" in norms else last

    def layer(self, index: int) -> LayerMap:
        """The layer that runs as number `index`, negative from the end."""
        if not -self.num_layers <= index < self.num_layers:
            raise IndexError(f"{self.path} has {self.num_layers} layers, got index {index}")
        index %= self.num_layers
        path = self.layer_paths[index]
        return LayerMap(self.others.get(index, self), index, path, self.layer_paths[:index].count(path))

    def under(self, prefix: str) -> StackMap:
        """The same stack inside a model that holds this one as `prefix`."""
        if not prefix:
            return self
        named = {name: getattr(self, name) for name in ("final_norm", "projection_out", "embedding")}
        absolute = {name: path and join(prefix, path) for name, path in named.items()}
        paths = tuple(join(prefix, path) for path in self.layer_paths)
        others = {index: other.under(prefix) for index, other in self.others.items()}
        return replace(self, path=join(prefix, self.path), layer_paths=paths, others=others, **absolute)


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

    def has(self, part: str) -> bool:
        """Whether the layer has the part: "attention" (or what mixes tokens in its place), "cross" or "ffn"."""
        if part == "ffn":
            return bool(self.stack.ffn_out)
        return (self.stack.attention if part == "attention" else self.stack.cross_attention) is not None

    @property
    def attention(self) -> AttentionMap:
        """Self-attention, or what mixes tokens in its place.

        Raises:
            ArchitectureError: The layer has none.
        """
        if self.stack.attention is None:
            raise self._lacks("attention")
        return self.stack.attention.under(self.path)

    @property
    def cross_attention(self) -> AttentionMap | None:
        """Attention over the encoder's output, where there is one."""
        return None if self.stack.cross_attention is None else self.stack.cross_attention.under(self.path)

    @property
    def ffn_in(self) -> tuple[str, ...]:
        """Linears that read the feed-forward input.

        Raises:
            ArchitectureError: The layer has no feed-forward part.
        """
        if not self.stack.ffn_out:
            raise self._lacks("ffn")
        return tuple(join(self.path, name) for name in self.stack.ffn_in)

    @property
    def ffn_out(self) -> str:
        """Linear that ends the feed-forward part.

        Raises:
            ArchitectureError: The layer has no feed-forward part.
        """
        if not self.stack.ffn_out:
            raise self._lacks("ffn")
        return join(self.path, self.stack.ffn_out)

    def _lacks(self, part: str) -> ArchitectureError:
        return ArchitectureError(
            "this layer has no such part",
            where=self.path,
            got=part,
            allowed=", ".join(one for one in ("attention", "cross", "ffn") if self.has(one)),
            try_=f"in the method, ask for it only where layer.has({part!r})",
        )

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
        for prefix, attention in (("", self.stack.attention), ("cross_", self.stack.cross_attention)):
            found = {} if attention is None else attention.linears
            roles.update({prefix + role: self.absolute(path) for role, path in found.items()})
        for number, path in enumerate(self.ffn_in if self.has("ffn") else ()):
            roles["ffn_in" if number == 0 else f"ffn_in_{number}"] = path
        roles["ffn_out"] = self.ffn_out if self.has("ffn") else None
        return {role: path for role, path in roles.items() if path is not None}


@dataclass(frozen=True)
class ArchitectureMap:
    """The stacks of a model.

    Attributes:
        model_type: transformers' name of the family.
        attention_interface: Whether any stack's attention goes through ``transformers.AttentionInterface``, which
            prefixes need; read off the model's code, for releases differ.
        own_attention: Paths of the stacks where it does not, and of layers of others, with their attention's class.
        pooler: The module that pools the last hidden state, where the model has one.
        rereads_input: The model looks at its input's rows again behind its layers (the last token of each, a
            convolution over the embeddings), so that they cannot become more on the way. The probe does not see it.
        source: "table" for a shipped or registered map, "probe" for an automatic one, "given" for one that ``attach``
            was given, "names" where only names are known.
        left_out: Path of each stack that could not be mapped, or did not run where the map was made, to why.
        lists, unmapped: Where no stack is mapped: each list with linears inside and its length; why there is none.
    """

    model_type: str
    stacks: tuple[StackMap, ...]
    attention_interface: bool = True
    pooler: str | None = None
    rereads_input: bool = field(default=False, compare=False)
    source: str = field(default="table", compare=False)
    left_out: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)
    lists: Mapping[str, int] = field(default_factory=dict, hash=False, compare=False)
    unmapped: str = field(default="", compare=False)
    own_attention: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # As of StackMap.
        vars(self).update({"lists": {}, "left_out": {}, "own_attention": {}} | state)

    @property
    def depths(self) -> dict[str, int]:
        """Path of each stack, or of each list of modules where none is mapped, to how many layers it has."""
        return {stack.path: stack.num_layers for stack in self.stacks} or dict(self.lists)

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The embedding modules that are really called, each once."""
        return tuple(dict.fromkeys(stack.embedding for stack in self.stacks if stack.embedding))

    @property
    def final_norm(self) -> dict[str, str | None]:
        """Stack path to the norm after its last layer."""
        return {stack.path: stack.final_norm for stack in self.stacks}

    def stack(self, name: str) -> StackMap:
        """The stack with this kind or path.

        Raises:
            NoSuchStackError: there is none.
        """
        for stack in self.stacks:
            if name in (stack.kind, stack.path):
                return stack
        known = [one for stack in self.stacks for one in (stack.kind, stack.path)]
        raise NoSuchStackError(
            "the model has no such stack",
            where=self.model_type,
            got=repr(name),
            allowed=", ".join(f"{stack.kind} ({stack.path})" for stack in self.stacks) or "none was mapped",
            try_=did_you_mean(name, known) or "hfadapt inspect MODEL shows them",
        )

    def layer(self, stack: str | StackMap, index: int) -> LayerMap:
        """Layer `index` of a stack given by itself, its kind or its path."""
        return (self.stack(stack) if isinstance(stack, str) else stack).layer(index)

    def layers(self, stack: str | StackMap | None = None) -> Iterator[LayerMap]:
        """Every layer with slots in the order they run; of one stack when it is named."""
        chosen = self.stacks if stack is None else (self.stack(stack) if isinstance(stack, str) else stack,)
        for one in chosen:
            for index in range(one.num_layers):
                if index not in one.left_out:
                    yield one.layer(index)

    def linears(self, model: nn.Module) -> tuple[str, ...]:
        """Names of every linear leaf inside the layers, mapped to a role or not, in module order."""
        layers = tuple({f"{path}." for stack in self.stacks for path in stack.layer_paths})
        mapped = {path for layer in self.layers() for path in layer.linears.values()}
        found = [name for name, module in model.named_modules() if is_linear(module)]
        return tuple(name for name in found if name.startswith(layers) or name in mapped)

    def paths(self) -> dict[str, str]:
        """Every path the map names, each with a word for what it is."""
        named: dict[str, str] = {}
        for layer in self.layers():
            named.update({path: role for role, path in layer.linears.items()})
            named.update({path: f"{role} norm" for role, path in layer.norms.items()})
            for role in ("attn_out_dropout", "cross_out_dropout", "ffn_out_dropout"):
                if (path := getattr(layer, role)) is not None:
                    named[path] = role
            for attention in (layer.stack.attention, layer.stack.cross_attention):
                if attention is not None:
                    named[join(layer.path, attention.output)] = "output"
                    named[join(layer.path, attention.first)] = "attention input"
                    named[join(layer.path, attention.module)] = "attention module"
        for stack in self.stacks:
            for role in ("final_norm", "projection_out", "embedding"):
                if (path := getattr(stack, role)) is not None:
                    named[path] = role
        return named

    def under(self, prefix: str) -> ArchitectureMap:
        """The same map inside a model that holds this one as `prefix`."""
        if not prefix:
            return self
        pooler = None if self.pooler is None else join(prefix, self.pooler)
        left_out = {join(prefix, path): why for path, why in self.left_out.items()}
        stacks = tuple(stack.under(prefix) for stack in self.stacks)
        own = {join(prefix, path): name for path, name in self.own_attention.items()}
        return replace(self, stacks=stacks, pooler=pooler, left_out=left_out, own_attention=own)
