"""What the readers of all goldens share: files in float64, comparison, and the copying of weights by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"
TOLERANCE = 1e-9


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; floating-point tensors become float64."""
    return {k: v.double() if v.is_floating_point() else v for k, v in load_file(str(path)).items()}


def metadata_of(path: Path, key: str) -> dict[str, Any]:
    """Read one JSON entry of a safetensors file's metadata."""
    with safe_open(str(path), "pt") as file:
        return json.loads(file.metadata()[key])


def starting_with(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose key starts with ``prefix``, by the rest of their key."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative where the expected values are large."""
    assert got.shape == want.shape, f"{list(got.shape)} != {list(want.shape)}"
    return (got.detach() - want).abs().max().item() / max(1.0, want.abs().max().item())


def close(got: Tensor, want: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Assert that ``error`` is within the tolerance."""
    found = error(got, want)
    assert found <= tolerance, f"{what}: off by {found:.3g}"


@dataclass
class Filler:
    """Copies a reference's weights into our parameters, and knows which of them were used."""

    tensors: dict[str, Tensor]
    used: set[str] = field(default_factory=set)

    def copy(self, parameter: nn.Parameter, key: str, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Copy the tensor ``key``, through ``change`` where layouts differ; numbers must agree, shapes may be views."""
        given = self.tensors[key] if change is None else change(self.tensors[key])
        with torch.no_grad():
            parameter.copy_(given.reshape(parameter.shape))
        self.used.add(key)

    def check(self, prefix: str, without_use: Iterable[str] = ()) -> None:
        """Assert that every tensor whose key starts with ``prefix`` was used, but for those named."""
        unused = {k for k in self.tensors if k.startswith(prefix)} - self.used - set(without_use)
        assert not unused, f"not used: {sorted(unused)}"


__all__ = ["DATA", "TOLERANCE", "Filler", "close", "error", "metadata_of", "starting_with", "tensors_of"]
