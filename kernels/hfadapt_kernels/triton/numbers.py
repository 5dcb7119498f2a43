"""The Triton kernel that writes numbers of the host to the device. Imported lazily: importing this imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["COUNT", "numbers_kernel"]

# Inside a jitted kernel Python indexing and constexpr annotations mean what Triton makes of them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportInvalidTypeForm=false

#: Numbers that one launch writes.
COUNT = 16


@triton.jit(do_not_specialize=[f"n{i}" for i in range(COUNT)])
def numbers_kernel(
    out_ptr, n0: tl.int64, n1: tl.int64, n2: tl.int64, n3: tl.int64, n4: tl.int64, n5: tl.int64, n6: tl.int64,
    n7: tl.int64, n8: tl.int64, n9: tl.int64, n10: tl.int64, n11: tl.int64, n12: tl.int64, n13: tl.int64, n14: tl.int64,
    n15: tl.int64,
):  # fmt: skip
    """Stores its arguments one behind the other: they travel with the launch, so nothing is copied or waited for."""
    tl.store(out_ptr, n0)
    tl.store(out_ptr + 1, n1)
    tl.store(out_ptr + 2, n2)
    tl.store(out_ptr + 3, n3)
    tl.store(out_ptr + 4, n4)
    tl.store(out_ptr + 5, n5)
    tl.store(out_ptr + 6, n6)
    tl.store(out_ptr + 7, n7)
    tl.store(out_ptr + 8, n8)
    tl.store(out_ptr + 9, n9)
    tl.store(out_ptr + 10, n10)
    tl.store(out_ptr + 11, n11)
    tl.store(out_ptr + 12, n12)
    tl.store(out_ptr + 13, n13)
    tl.store(out_ptr + 14, n14)
    tl.store(out_ptr + 15, n15)
