"""The sizes of the parts: on a card those that the goals name, in the interpreter the smallest that are odd."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["CARD", "INTERPRETER", "Size", "Sizes"]


@dataclass(frozen=True)
class Size:
    """Of one call: rows and tokens of a batch, hidden size, largest rank, tasks, heads."""

    rows: int
    tokens: int
    width: int
    rank: int
    tasks: int
    heads: int = 2

    def label(self) -> str:
        return f"{self.rows}x{self.tokens} width {self.width} r={self.rank} tasks={self.tasks}"


@dataclass(frozen=True)
class Sizes:
    """Of all parts.

    Attributes:
        odd: For the comparison with float64 and for equal bits.
        large: At which rates are measured.
        captured: At which they are measured in a CUDA graph.
        encoder: Layers, and the size of the encoder's batch.
        dtypes: Of the comparison; rates take the last.
        repeats: Runs whose bits are compared.
    """

    odd: tuple[Size, ...]
    large: tuple[Size, ...]
    captured: Size
    encoder: tuple[int, Size]
    dtypes: tuple[torch.dtype, ...]
    repeats: int


CARD = Sizes(
    odd=(Size(5, 67, 200, 20, 3), Size(4, 129, 768, 64, 2, 12), Size(3, 1, 72, 7, 2)),
    large=(Size(64, 512, 768, 64, 8, 12), Size(64, 512, 768, 16, 64, 12), Size(512, 64, 768, 16, 512, 12)),
    captured=Size(32, 64, 768, 64, 8, 12),
    encoder=(6, Size(32, 128, 768, 16, 32, 12)),
    dtypes=(torch.float32, torch.bfloat16),
    repeats=20,
)
INTERPRETER = Sizes(
    odd=(Size(2, 3, 20, 5, 2),),
    large=(Size(2, 2, 16, 4, 2),),
    captured=Size(2, 2, 16, 4, 2),
    encoder=(1, Size(2, 2, 16, 4, 2)),
    dtypes=(torch.float32,),
    repeats=1,
)
