"""The direction in which an update changes most: what tokens are compared with under Arrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Prototypes", "top_right_singular_vector"]


def top_right_singular_vector(a: Tensor, b: Tensor) -> Tensor:
    """Return the first right singular vector ``[Din]`` of ``B A``, of length 1.

    It is 0 where the product is 0, and NaN where the matrices hold NaN or Inf.

    Worked out in float64 from the factors: with ``A^T = Q R``, those of ``B A = (B R^T) Q^T`` are Q times those of a
    matrix as narrow as the rank. Its sign means nothing.

    Args:
        a: A, ``[R, Din]``.
        b: B, ``[O, R]``.
    """
    a, b = a.detach().double(), b.detach().double()
    q, r = torch.linalg.qr(a.nan_to_num().T)
    _, sizes, right = torch.linalg.svd(b.nan_to_num() @ r.T, full_matrices=False)
    # Of a product that is 0 every direction is a singular vector, and of one with NaN there is none.
    unknown = 0 * (a.sum() + b.sum())
    return (q @ right[0]) * (sizes[0] > 0) + unknown


class Prototypes:
    """The prototypes of the adapters of one delta, each worked out anew when its matrices have changed.

    What a matrix was is known by where it lies and by torch's count of its changes in place. Writes through ``.data``
    are not counted, so that nothing is kept of a model in training, whose optimizer may write so.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Any, Tensor]] = {}

    def of(
        self, name: str, own: Sequence[Tensor], matrices: Callable[[str], tuple[Tensor, Tensor]], training: bool
    ) -> Tensor:
        """Return the prototype of an adapter.

        Args:
            name: Of the adapter.
            own: The parameters that its update is made of.
            matrices: Returns A ``[R, Din]`` and B ``[O, R]`` of an adapter, made of these.
            training: The adapters may be another thing at every call.
        """
        # A traced graph must hold the computation, or it would hold today's vector for ever.
        if training or torch.compiler.is_compiling() or any(one.is_inference() for one in own):
            self._kept.pop(name, None)
            return top_right_singular_vector(*matrices(name))
        key = tuple((one.data_ptr(), one._version, one.device) for one in own)
        found = self._kept.get(name)
        if found is None or found[0] != key:
            found = self._kept[name] = (key, top_right_singular_vector(*matrices(name)))
        return found[1]
