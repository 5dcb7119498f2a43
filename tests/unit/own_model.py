"""A model of a user's own, which knows no transformers, and what is asked of its adapters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import hfadapt

WIDTH = 8


@dataclass
class Config:
    model_type: str = "own"
    vocab_size: int = 50


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.mix(x).cumsum(1) / 7
        return x + self.down(torch.tanh(self.up(x)))


class Own(nn.Module):
    """A model of a user's own, which takes words and knows no transformers."""

    def __init__(self, layers=3):
        super().__init__()
        self.config = Config()
        self.words = nn.Embedding(50, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.score = nn.Linear(WIDTH, 4)

    def forward(self, tokens):
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        return self.score(x)


class Unmapped(Own):
    """One whose layers add nothing to what they read, so that no map fits them."""

    def __init__(self, layers=3):
        super().__init__(layers)
        self.blocks = nn.ModuleList(Unsummed() for _ in range(layers))


class Unsummed(Block):
    def forward(self, x):
        return self.down(torch.tanh(self.up(self.mix(x).cumsum(1) / 7)))


def own(seed=0, kind=Own):
    torch.manual_seed(seed)
    return kind().double().eval()


def tokens(rows=3, seed=1):
    return torch.randint(0, 50, (rows, 6), generator=torch.Generator().manual_seed(seed))


def lora(*names, **more):
    return hfadapt.LoRA(target_modules=names, init="normal", **more)


@torch.no_grad()
def assert_rows_are_their_adapters(model, given, names=("a", "b", "a")):
    alone = {name: model(given, task_ids=name) for name in set(names)}
    mixed = model(given, task_ids=list(names))
    assert not torch.allclose(alone["a"], alone["b"])
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=0, atol=1e-10)
