"""A frozen weight laid out once for this machine's matrix product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import native
from ..backend import requested_backend
from ..errors import UnsupportedError
from ..misfits import input_misfit, nearest
from ..namespace import cpu_ops
from ..weight_words import Words, words_of
from .int8_dynamic import DYNAMIC, MOST_INPUTS, outlier_columns, quantised
from .reference import int8_scale

__all__ = ["WEIGHT_TYPES", "PackedLinear"]

WEIGHT_TYPES = {"float32": 0, "bfloat16": 1, "int8": 2, DYNAMIC: 3}


class PackedLinear:
    """A frozen weight [O, Din] and its packed panels.

    The weight itself is referenced, never copied or changed, so `unpack` is exact for every packed type and a module
    that shares it keeps its parameter. Panels are derived from it: pickling and deep copies carry the weight only
    and pack again where they land, for that machine's instruction set.

    Attributes:
        weight: The frozen weight, [O, Din].
        dtype: What was asked for: ``float32``, ``bfloat16``, ``int8`` (weights only, one scale a row) or
            ``int8_dynamic`` (the rows of x too, each by its own scale).
        keep_outliers: Of ``int8_dynamic``: whether columns that would cost all others their accuracy stay in float32
            (`hfadapt_kernels.frozen_linear.int8_dynamic.outlier_columns` is the rule).
    """

    keep_outliers = True  # what older pickles lack
    _outliers: Tensor | None = None

    def __init__(self, weight: Tensor, dtype: str = "float32", *, keep_outliers: bool = True) -> None:
        if dtype not in WEIGHT_TYPES:
            raise UnsupportedError(
                "PackedLinear",
                "dtype",
                expected=f"one of {sorted(WEIGHT_TYPES)}",
                got=repr(dtype),
                hint=nearest(str(dtype).removeprefix("torch."), WEIGHT_TYPES, "Use 'float32', which loses nothing."),
            )
        if weight.dim() != 2 or not weight.is_floating_point():
            raise input_misfit("PackedLinear", "weight", weight, "tensor [O, Din]", 2)
        if dtype == DYNAMIC and weight.shape[1] > MOST_INPUTS:
            raise UnsupportedError(
                "PackedLinear",
                "weight",
                expected=f"at most {MOST_INPUTS} inputs, so that int32 holds every sum",
                got=str(list(weight.shape)),
                hint="Pack it as 'int8', which sums in float32.",
            )
        self.weight = weight
        self.dtype = dtype
        self.keep_outliers = keep_outliers
        self._made_for: tuple[Any, ...] | None = None
        self._words: tuple[int | None, Words] = (None, ())
        self._panels: Tensor | None = None
        self._panels_t: Tensor | None = None
        self._scale: Tensor | None = None
        self._prepare_early()

    @classmethod
    def pack(cls, weight: Tensor, dtype: str = "float32", *, keep_outliers: bool = True) -> PackedLinear:
        """Pack ``weight`` [O, Din]; the same as the constructor."""
        return cls(weight, dtype, keep_outliers=keep_outliers)

    def forget(self) -> None:
        """Drop the panels; they are made again when they are needed."""
        self._panels, self._panels_t, self._made_for = None, None, None

    def unpack(self) -> Tensor:
        """The weight, bit for bit as it was given (the same tensor)."""
        return self.weight

    @property
    def nbytes(self) -> int:
        """Bytes that the panels take beside the weight."""
        made = {t.data_ptr(): t.nbytes for t in (self._panels, self._panels_t) if t is not None}
        return sum(size for at, size in made.items() if at != self.weight.data_ptr())

    @property
    def kind(self) -> str:
        """What the product multiplies with: `dtype`, or ``bfloat16`` where that loses nothing.

        A bfloat16 weight given as ``float32`` holds bfloat16 numbers; it is multiplied as such, with bfloat16 rows, on
        the processor's bfloat16 product, which sums in float32.
        """
        exact = self.dtype == "float32" and self.weight.dtype == torch.bfloat16
        return "bfloat16" if exact and self.weight.device.type == "cpu" else self.dtype

    def _state(self, triton: bool) -> tuple[Any, ...]:
        version = None if self.weight.is_inference() else self.weight._version
        at = self.weight.data_ptr()
        if self._words[0] != at:
            self._words = (at, words_of(self.weight))
        return (at, version, [word.value for word in self._words[1]], "triton" if triton else native.isa())

    def _packable(self, triton: bool) -> bool:
        if triton:
            return self.weight.dtype != torch.float64
        return native.available() and self.weight.device.type == "cpu" and self.weight.dtype != torch.float64

    def prepare(self, *, backward: bool = False, wanted: str | None = None) -> None:
        """Make the panels (and those of the gradient) if they are missing or the weight has changed since.

        Args:
            backward: Whether those of the gradient are needed.
            wanted: The backend asked for, where the caller knows it.
        """
        if self.weight.is_meta:  # of a copy on which something is tried; it holds no numbers
            return
        triton = self.weight.device.type == "cuda" or (wanted or requested_backend()) == "triton"
        packable = self._packable(triton)
        if not packable and self.kind != DYNAMIC:
            return
        state = self._state(triton)
        if self._made_for != state:
            self._panels, self._panels_t, self._made_for = None, None, state
            self._scale = int8_scale(self.weight) if self.kind == "int8" else None
            self._outliers = outlier_columns(self.weight) if self.kind == DYNAMIC and self.keep_outliers else None
        if not packable:
            return
        if self._panels is None:
            self._panels = self._make(triton, transposed=False)
        if backward and self._panels_t is None:
            self._panels_t = self._make(triton, transposed=True)

    def _prepare_early(self) -> None:
        # Where the automatic choice leaves float32 to torch, panels are made only when somebody insists on ours.
        if self.kind != "float32" or not native.torch_product_is_fast():
            self.prepare()

    def _make(self, triton: bool, *, transposed: bool) -> Tensor:
        if triton:
            from .triton import panels

            # Read with either axis inside: the gradient's product needs no second copy.
            made = self._panels_t if self._panels is None else self._panels
            if self.kind == DYNAMIC and self._scale is None:
                self._scale = quantised(self.weight, self._outliers)[1]
            return panels(self.weight, self.kind, self._outliers) if made is None else made
        weight, own_scale = self.weight.detach(), self._scale
        if self.kind == DYNAMIC:
            q, self._scale = quantised(weight, self._outliers)
            if not transposed:
                return self._int8_panels(q)
            # The gradient is multiplied by the scale before; what is left are the int8 numbers themselves.
            weight, own_scale = q.float(), torch.ones(len(q))
        if weight.dtype == torch.float16:
            weight = weight.float()
        outputs, inputs = weight.shape if not transposed else weight.shape[::-1]
        kind = WEIGHT_TYPES["int8" if self.kind == DYNAMIC else self.kind]
        packed = torch.empty(cpu_ops.frozen_linear_packed_bytes(kind, inputs, outputs), dtype=torch.uint8)
        scale, k_scale = (None, own_scale) if transposed else (own_scale, None)
        cpu_ops.frozen_linear_pack(weight, transposed, kind, scale, k_scale, packed)
        return packed

    def _int8_panels(self, q: Tensor) -> Tensor:
        outliers = self._outliers
        kept = None if outliers is None else self.weight.detach()[:, outliers].float().t().contiguous()
        size = cpu_ops.int8_linear_packed_bytes(q.shape[1], q.shape[0], 0 if outliers is None else len(outliers))
        packed = torch.empty(size, dtype=torch.uint8)
        cpu_ops.int8_linear_pack(q.contiguous(), kept, packed)
        return packed

    def __getstate__(self) -> dict[str, Any]:
        return {"weight": self.weight, "dtype": self.dtype, "keep_outliers": self.keep_outliers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.weight, self.dtype = state["weight"], state["dtype"]
        self.keep_outliers = state.get("keep_outliers", True)
        self._made_for = self._panels = self._panels_t = self._scale = self._outliers = None
        self._words = (None, ())
        self._prepare_early()

    def __repr__(self) -> str:
        return f"PackedLinear({self.weight.shape[0]}x{self.weight.shape[1]}, {self.dtype})"
