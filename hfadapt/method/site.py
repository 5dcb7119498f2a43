"""One slot in one layer of one model.

A slot is a place of the papers' design space ("the FFN's output, from the FFN's input"); a ``Site`` is that slot in one
layer of one model: a leaf module, which side of it is changed, and which other tensor is read.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Site", "Tap"]


@dataclass(frozen=True)
class Tap:
    """A tensor that a slot reads but does not change.

    Args:
        leaf: Path of the module whose tensor is kept.
        side: ``"input"`` (its first argument) or ``"output"``.
    """

    leaf: str
    side: str = "input"

    @property
    def key(self) -> str:
        """The name of the tensor in ``Routing.taps``."""
        return f"{self.leaf}:{self.side}"


@dataclass(frozen=True)
class Site:
    """One slot in one layer of one model.

    Args:
        slot: The slot's name, e.g. ``"ffn_output"``.
        stack: Path of the stack of layers.
        layer: Depth in that stack, counted by calls (ALBERT calls one module for many depths).
        leaf: Path of the module at which the tensor is changed.
        side: ``"input"``, ``"output"``, ``"attention"`` (the core of attention, through AttentionInterface),
            ``"numbers"`` (the ids of tokens or positions that the leaf looks up, int64 ``[B, T]``), ``"weights"``
            (a parameter of the leaf) or ``"convolution"`` (what a convolution reads and makes inside its forward).
        width: Size of the last axis of the changed tensor; of a convolution, its channels.
        source: The tensor that is read when it is neither the changed one nor the leaf's input.
        reads_leaf_input: The delta reads the input of the leaf whose output it changes (LoRA).
        source_width: Size of the last axis of what is read; of a convolution, its channels.
        shared_layer: Path of the layer module when one module is called for several depths, else "".
        call: Which call of that module this depth is, from 0.
        causal: The stack's self-attention is causal.
        part: Only these entries of the last axis change: ``(blocks, start, stop)``, from start to stop in each of equal
            blocks (the queries of a fused projection); None for all.
        reads_memory: What is read are the encoder's states, in a decoder's cross-attention.
        query_heads: Heads of the attention whose heads or core are changed.
        kv_heads: Key-value heads of the attention whose core is changed.
        value_width: Of the core of attention, the width of a value's head where it is not that of a key's; else 0.
        rows_known: The first axis of the tensor is the batch's, as a map says. Otherwise it is tried before rows of
            several adapters meet there.
        row_axis: Where the rows are; 1 in a stack whose hidden state is [T, B, D].
        channels_first: The tensor is [B, D, height, width], and D is what counts as its last axis.
        optional: Chosen with everything else and not by its name: where it never runs, that is said and no error.
        parameter: Name of the leaf's own parameter that changes, where that is what changes.
        stacked: How many matrices that parameter holds; each has ``width`` outputs and ``source_width`` inputs.
        window: Sizes of the window of the convolution whose output changes, one an axis; () elsewhere.
    """

    slot: str
    stack: str
    layer: int
    leaf: str
    side: str
    width: int
    source: Tap | None = None
    reads_leaf_input: bool = False
    source_width: int = 0
    shared_layer: str = ""
    call: int = 0
    causal: bool = False
    part: tuple[int, int, int] | None = None
    reads_memory: bool = False
    query_heads: int = 0
    kv_heads: int = 0
    value_width: int = 0
    rows_known: bool = True
    row_axis: int = 0
    channels_first: bool = False
    optional: bool = False
    window: tuple[int, ...] = ()
    parameter: str = ""
    stacked: int = 0

    @property
    def read_width(self) -> int:
        """Size of the last axis of the tensor that is read."""
        return self.source_width or self.width

    @property
    def changed_width(self) -> int:
        """How many entries of the last axis change."""
        blocks, start, stop = self.part or (1, 0, self.width)
        return blocks * (stop - start)
