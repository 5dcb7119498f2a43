"""Adds a perturbation to the output of a model's word embeddings, for passes of regularizers.

What is perturbed is the output of the leaf that looks words up, by a hook on it: ``inputs_embeds`` would change the
positions of RoBERTa-like and of padded models, and ``get_input_embeddings()`` of T5 and BART names a module that is
never called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import ArchitectureError

__all__ = ["Perturbation", "perturbed", "word_embeddings"]


class Perturbation(Protocol):
    """What is added, decided when the word embeddings are there."""

    def __call__(self, call: int, embedded: Tensor, input_ids: Tensor | None) -> Tensor:
        """Return what to add to one call's output.

        Args:
            call: How many calls of word embeddings came before in this forward pass (texts encoded separately make
                two).
            embedded: Output of the word embeddings, [B, T, D].
            input_ids: What was looked up, [B, T].
        """
        ...


def word_embeddings(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the leaves that look up the words that a model reads; an encoder-decoder reads with its encoder.

    Args:
        model: A transformers model, adapted or not, or a ``MultiTaskModel``.

    Raises:
        ArchitectureError: the model reads no words (vision, speech), or looks them up in a way that is not known.
    """
    name = type(model).__name__
    get = getattr(model, "get_input_embeddings", None)
    try:
        table = get() if get is not None else None
    except (NotImplementedError, AttributeError):
        table = None
    weight = getattr(table, "weight", None)
    reads = getattr(_stock(model), "main_input_name", "input_ids")
    if not isinstance(table, nn.Module) or not _looks_up(table) or weight is None or reads != "input_ids":
        raise ArchitectureError(
            "no word embeddings to perturb",
            where=name,
            got=f"get_input_embeddings() is {type(table).__name__}, and the model reads {reads!r}",
            allowed="models that look words up: encoders, decoders and encoder-decoders of text",
            try_="a regularizer that perturbs no embeddings: r_drop or sam",
        )
    within = _encoder(model)
    leaves = [one for one in within.modules() if _looks_up(one) and getattr(one, "weight", None) is weight]
    # models without tied copies look words up in the module itself, wherever it stands
    return tuple(leaves) or (table,)


def _looks_up(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    named = isinstance(module, nn.Embedding) or "Embedding" in type(module).__name__
    return named and isinstance(weight, Tensor) and weight.dim() == 2


def _stock(model: nn.Module) -> nn.Module:
    base = getattr(model, "base", None)
    return base if isinstance(base, nn.Module) else model


def _encoder(model: nn.Module) -> nn.Module:
    stock: Any = _stock(model)
    if not getattr(getattr(stock, "config", None), "is_encoder_decoder", False):
        return model
    encoder: Any = stock.get_encoder()
    return encoder


class _Adding:
    """The hook: adds what the perturbation says, and keeps it."""

    def __init__(self, perturbation: Perturbation, words: bool) -> None:
        self.perturbation = perturbation
        self.words = words
        self.added: list[Tensor] = []

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        ids = args[0] if args else kwargs.get("input")
        delta = self.perturbation(len(self.added), output, ids)
        self.added.append(delta)
        # summed in the wider dtype and rounded once, so that the model's own dtype goes on
        return ((output if self.words else output.detach()) + delta).to(output.dtype)


@contextlib.contextmanager
def perturbed(leaves: Sequence[nn.Module], perturbation: Perturbation, *, words: bool = True) -> Iterator[list[Tensor]]:
    """Perturb the word embeddings of the forward passes inside; yields what was added, call by call.

    Compiled models run eagerly inside: their graphs were made without the hook and would pass it over.

    Args:
        leaves: What ``word_embeddings`` returned.
        perturbation: Says what to add; zeros give bit-equal logits.
        words: Whether the embeddings themselves get a gradient from these passes.

    Raises:
        ArchitectureError: the passes never looked a word up, so nothing was perturbed.
    """
    adding = _Adding(perturbation, words)
    handles = [leaf.register_forward_hook(adding, with_kwargs=True) for leaf in leaves]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield adding.added
    finally:
        for handle in handles:
            handle.remove()
    if not adding.added:
        raise ArchitectureError(
            "the model looked no words up, so nothing was perturbed",
            where=", ".join(type(leaf).__name__ for leaf in leaves),
            got="no call of these modules",
            allowed="forward passes that read words by their ids",
            try_="batches with input_ids and not inputs_embeds",
        )
