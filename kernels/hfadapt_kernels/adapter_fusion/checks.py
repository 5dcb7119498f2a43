"""What `adapter_fusion` refuses, and why."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..arguments import require_finite
from ..errors import ShapeError
from ..misfits import input_misfit, misfit

__all__ = ["check_arguments"]

_NAME = "adapter_fusion"
# Where the sizes that a message names come from.
_SIZES = "B, T and D are those of the query, and R of each adapter's own hidden and up."


def _expect(name: str, tensor: Tensor, shape: tuple[int | str, ...], like: Tensor) -> None:
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits or tensor.dtype != like.dtype or tensor.device != like.device:
        raise misfit(_NAME, name, tensor, shape, like, _SIZES)


def check_arguments(
    query: Tensor,
    hidden: Sequence[Tensor],
    up: Sequence[Tensor],
    up_bias: Sequence[Tensor] | None,
    scale: Sequence[float | Tensor],
    query_weight: Tensor,
    query_bias: Tensor | None,
    key_weight: Tensor,
    key_bias: Tensor | None,
    value_weight: Tensor,
    temperature: float,
) -> None:
    """Raise `ShapeError` unless the arguments of `adapter_fusion` fit together."""
    if query.dim() != 3 or not query.is_floating_point():
        raise input_misfit(_NAME, "query", query, "[B, T, D]", 3)
    rows, tokens, dim = query.shape
    lengths = {"up": len(up), "scale": len(scale), "up_bias": len(up) if up_bias is None else len(up_bias)}
    if not hidden or any(length != len(hidden) for length in lengths.values()):
        raise ShapeError(
            _NAME,
            "number of adapters",
            expected="at least one, and as many up projections, biases and scales as hidden tensors",
            got=f"hidden {len(hidden)}, " + ", ".join(f"{name} {length}" for name, length in lengths.items()),
            hint="Give each list one entry an adapter; up_bias=None where none has a bias."
            if hidden
            else "Leave the op out where there are no adapters to fuse.",
        )
    for n, (z, weight) in enumerate(zip(hidden, up, strict=True)):
        _expect(f"hidden[{n}]", z, (rows, tokens, "R"), query)
        _expect(f"up[{n}]", weight, (dim, z.shape[2]), query)
    for n, bias in enumerate(up_bias or ()):
        _expect(f"up_bias[{n}]", bias, (dim,), query)
    require_finite(_NAME, "scale", *(factor for factor in scale if not isinstance(factor, Tensor)))
    for n, factor in enumerate(scale):
        if isinstance(factor, Tensor) and factor.shape not in ((), (1,), (dim,)):
            raise ShapeError(
                _NAME,
                f"scale[{n}]",
                expected=f"a number, [1] or [{dim}]",
                got=str(list(factor.shape)),
                hint=f"Use scale[{n}].flatten()."
                if factor.numel() in (1, dim)
                else f"Use one factor, or one for each of the {dim} features of up[{n}].",
            )
    for name, weight in (
        ("query_weight", query_weight),
        ("key_weight", key_weight),
        ("value_weight", value_weight),
    ):
        _expect(name, weight, (dim, dim), query)
    for name, vector in (("query_bias", query_bias), ("key_bias", key_bias)):
        if vector is not None:
            _expect(name, vector, (dim,), query)
    if not temperature > 0.0:
        raise ShapeError(
            _NAME,
            "temperature",
            expected="a number above 0",
            got=str(temperature),
            hint="Use 1.0, which leaves the scores as they are.",
        )
