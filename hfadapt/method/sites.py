"""The slots of the papers' design space, found in the layers of a model.

Each function takes one layer of an architecture map and returns the site of one slot there. Where a norm closes the
sub-layer (post-norm models) the FFN and layer sums are changed at that norm's input, behind the residual addition: a
delta there passes no dropout of the base, as in the papers. In pre-norm models without a dropout module after the
sub-layer (mBART, Whisper) the delta is added before the base's functional dropout; evaluation is the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from ..architecture import linear_sizes
from ..errors import AttachError
from .site import Site, Tap

if TYPE_CHECKING:
    from ..architecture import LayerMap, StackMap

__all__ = [
    "attention_core",
    "attention_heads",
    "attention_input",
    "attention_output",
    "cross_output",
    "embedding_output",
    "ffn_hidden",
    "ffn_input",
    "ffn_output",
    "layer_input",
    "layer_output",
    "layer_sum",
    "linear",
    "numbers",
    "sublayer_sum",
    "top",
]


def _site(layer: LayerMap, slot: str, leaf: str, side: str, width: int, **more: Any) -> Site:
    stack = layer.stack
    shared = {"shared_layer": layer.path, "call": layer.call} if stack.layer_paths.count(layer.path) > 1 else {}
    more = {"rows_known": stack.rows_known, "row_axis": int(stack.time_first), **more}
    more |= {"channels_first": True} if stack.channels_first and leaf == layer.path else {}
    return Site(slot, stack.path, layer.index, leaf, side, width, causal=stack.causal, **shared, **more)


def layer_input(layer: LayerMap) -> Tap:
    """The tensor that enters the layer (h)."""
    return _tokens_alone(layer) or Tap(layer.first_leaf)


def _tokens_alone(layer: LayerMap) -> Tap | None:
    """Where queries and keys of a table are projected too (DeBERTa v3), the projection that sees only tokens."""
    value = layer.attention.value if layer.stack.reads_shared_table and layer.has("attention") else None
    return None if value is None else Tap(value)


def attention_input(layer: LayerMap, cross: bool = False) -> Tap:
    """The tensor that the query projection reads (x)."""
    attention = layer.cross_attention if cross else layer.attention
    assert attention is not None
    return (None if cross else _tokens_alone(layer)) or Tap(attention.first)


def ffn_input(layer: LayerMap) -> Tap:
    """What a parallel adapter beside the FFN reads: the sub-layer's input before a pre-norm.

    In pre-norm models that is the residual stream before its norm, as in the published code of the unified view and in
    AdapterHub; in post-norm models it is the attention sub-layer's output.
    """
    style, norms = layer.stack.style, layer.norms
    return Tap(norms["pre_ffn"]) if style != "post" and "pre_ffn" in norms else Tap(layer.ffn_in[0])


def attention_output(layer: LayerMap) -> Site:
    """The output of self-attention, behind its dropout module where there is one."""
    leaf = layer.norms.get("sandwich_attention") or layer.attn_out_dropout or layer.attention.output
    return _site(layer, "attention_output", leaf, "output", layer.stack.hidden_size)


def cross_output(layer: LayerMap) -> Site:
    """The output of cross-attention."""
    if layer.cross_attention is None:
        raise AttachError(
            "this layer has no cross-attention",
            where=layer.path,
            got=f"a layer of kind {layer.stack.kind!r} without it",
            allowed="layers of a decoder that reads an encoder's output",
            try_="in the method, ask for this site only where layer.cross_attention is not None",
        )
    leaf = layer.norms.get("sandwich_cross") or layer.cross_out_dropout or layer.cross_attention.output
    return _site(layer, "cross_output", leaf, "output", layer.stack.hidden_size)


def ffn_output(layer: LayerMap, source: Tap | None = None) -> Site:
    """The output of the FFN: serial without ``source``, parallel with ``ffn_input(layer)``."""
    leaf = layer.norms.get("sandwich_ffn") or layer.ffn_out_dropout or layer.ffn_out
    return _site(layer, "ffn_output", leaf, "output", layer.stack.hidden_size, source=source)


def ffn_sum(layer: LayerMap, source: Tap) -> Site:
    """Where a parallel FFN delta is added: the closing norm's input in post-norm models, else the FFN's output."""
    if "post_ffn" in layer.norms and layer.stack.style == "post":
        return _site(layer, "ffn_sum", layer.norms["post_ffn"], "input", layer.stack.hidden_size, source=source)
    return ffn_output(layer, source)


def layer_sum(layer: LayerMap) -> Site:
    """The sum that leaves the layer, from the layer's input: h_{l+1} = LN(h + SA(h) + TS(h)) (PALs eq. 8).

    In a layer without a feed-forward part, what its other sub-layer adds.
    """
    source = layer_input(layer)
    site = ffn_sum(layer, source) if layer.has("ffn") else replace(attention_output(layer), source=source)
    return Site(**{**site.__dict__, "slot": "layer_sum"})


def sublayer_sum(layer: LayerMap, sublayer: str) -> Site:
    """The sum of a sub-layer's output and its residual, at the input of the norm that closes it (post-norm only)."""
    role = f"post_{sublayer}"
    if role not in layer.norms:
        raise AttachError(
            "this layer has no norm behind that sub-layer",
            where=layer.path,
            got=sublayer,
            allowed=sorted(layer.norms),
            try_=f"in the method, ask for this site only where {role!r} is in layer.norms",
        )
    return _site(layer, f"{sublayer}_sum", layer.norms[role], "input", layer.stack.hidden_size)


def attention_heads(layer: LayerMap, cross: bool = False) -> Site:
    """The concatenated heads before W_o, from the attention input; before any last linear of what mixes tokens.

    Raises:
        AttachError: What mixes tokens ends in no linear.
    """
    attention = layer.cross_attention if cross else layer.attention
    assert attention is not None
    width = attention.width or layer.stack.num_heads * (layer.stack.value_dim or layer.stack.head_dim)
    if width < 0:
        raise AttachError(
            "what mixes tokens in this layer does not end in a linear, so that nothing stands before one",
            where=layer.path,
            got=attention.output,
            allowed="attention with an output projection",
            try_="a method that adds to its output; hfadapt inspect MODEL lists which fit",
        )
    return _site(
        layer,
        "cross_heads" if cross else "attention_heads",
        attention.output,
        "input",
        width,
        source=attention_input(layer, cross),
        source_width=layer.stack.hidden_size,
        query_heads=layer.stack.num_heads,
    )


def ffn_hidden(layer: LayerMap) -> Site:
    """The FFN's hidden units, behind the activation.

    Raises:
        AttachError: The FFN is a block, such as a mixture of experts, whose hidden units differ from token to token.
    """
    if layer.stack.ffn_is_block:
        raise AttachError(
            "this layer's feed-forward part has no hidden units of its own",
            where=layer.ffn_out,
            got="a block, such as a mixture of experts",
            allowed="a feed-forward part whose hidden units are the same for every token",
            try_="a method that adds to that part's output; hfadapt inspect MODEL lists which fit",
        )
    return _site(layer, "ffn_hidden", layer.ffn_out, "input", layer.stack.ffn_size)


def linear(layer: LayerMap, leaf: str, model: nn.Module) -> Site:
    """The output of one linear, from its input (LoRA)."""
    inputs, outputs = linear_sizes(model.get_submodule(leaf))
    cross = layer.cross_attention
    memory = cross is not None and leaf in (cross.key, cross.value, cross.fused)
    more = {"reads_leaf_input": True, "source_width": inputs, "reads_memory": memory}
    return _site(layer, "linear", leaf, "output", outputs, **more)


def attention_core(layer: LayerMap, cross: bool = False, source: Tap | None = None) -> Site:
    """Keys, values and queries of every head, through AttentionInterface; may read the attention input too."""
    attention = layer.cross_attention if cross else layer.attention
    assert attention is not None
    stack = layer.stack
    return _site(
        layer,
        "cross_core" if cross else "attention_core",
        attention.module,
        "attention",
        stack.head_dim,
        source=source,
        source_width=stack.hidden_size,
        query_heads=stack.num_heads,
        kv_heads=stack.num_kv_heads,
        value_width=stack.value_dim,
    )


def layer_output(layer: LayerMap) -> Site:
    """The hidden state that leaves the layer, behind its last norm."""
    leaf = layer.norms["post_ffn"] if layer.stack.style == "post" and "post_ffn" in layer.norms else layer.path
    return _site(layer, "layer_output", leaf, "output", layer.stack.hidden_size)


def embedding_output(stack: StackMap) -> Site:
    """The tensor that enters the first layer."""
    first = stack.layer(0)
    return _site(first, "embedding_output", first.path, "input", stack.hidden_size)


def numbers(stack: StackMap, leaf: str, slot: str) -> Site:
    """The ids that a leaf looks up for every token of a stack: its positions, or its token types.

    They belong to no layer, so that AdapterDrop leaves them.
    """
    return Site(slot, stack.path, stack.num_layers, leaf, "numbers", 1, causal=stack.causal)


def top(stack: StackMap, model: nn.Module) -> Site:
    """The stack's last hidden state, before a pooler or head reads it."""
    narrow = stack.projection_out  # OPT-350m
    width = linear_sizes(model.get_submodule(narrow))[1] if narrow else stack.hidden_size
    return _site(stack.layer(-1), "top", stack.top, "output", width)
