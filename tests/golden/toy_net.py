"""The toy net that the goldens of regularizers were made with, and the product's passes over it with noise replayed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from golden_files import starting_with
from torch import Tensor, nn

from hfadapt.training.regularizers import Noise, Step, word_embeddings


class ToyNet(nn.Module):
    """``linear(mean(h) + mean(h^2) / 2)``, ``h = tanh(linear(embedding))``, means over real tokens."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str = "weight.") -> None:
        super().__init__()
        weights = starting_with(tensors, prefix)
        self.emb = nn.Embedding(*weights["emb.weight"].shape)
        self.l1 = nn.Linear(*reversed(weights["l1.weight"].shape))
        self.l2 = nn.Linear(*reversed(weights["l2.weight"].shape))
        self.double().load_state_dict(weights)

    def get_input_embeddings(self) -> nn.Module:
        return self.emb

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        hidden = self.l1(self.emb(input_ids)).tanh()
        mask = attention_mask.to(hidden.dtype).unsqueeze(-1)
        count = mask.sum(1)
        logits = self.l2((hidden * mask).sum(1) / count + 0.5 * (hidden.square() * mask).sum(1) / count)
        loss = logits.new_zeros(()) if labels is None else F.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


class Replayed(Noise):
    """Hands out given draws in place of its own."""

    def __init__(self, draw: Tensor) -> None:
        super().__init__((0,), range(len(draw)))
        self.given = draw

    def draw(self, law: Any, size: float, like: Tensor) -> Tensor:
        return self.given


def step_of(tensors: dict[str, Tensor], noise: Tensor, prefix: str = "weight.", inputs: str = "in.") -> Step:
    """Return the product's step over the inputs of a golden file."""
    net = ToyNet(tensors, prefix)
    keys = ("input_ids", "attention_mask", "labels")
    given = {key: tensors[inputs + key] for key in keys if inputs + key in tensors}

    def compute(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        output = model(**batch)
        return output.loss, output

    return Step(net, given, compute, noise=Replayed(noise), leaves=word_embeddings(net))


def gradients(net: nn.Module) -> dict[str, Tensor]:
    """The gradients of a net by name; zeros where there is none."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()}
