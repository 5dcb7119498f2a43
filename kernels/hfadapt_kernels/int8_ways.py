"""How products of int8 with int8 are made on this processor: by pairs, by bytes or by tiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from . import native
from .errors import BackendError
from .misfits import nearest
from .namespace import cpu_ops

__all__ = ["INT8_WAYS", "int8_instruction", "int8_way", "use_int8_way"]

#: From slowest to fastest; the numbers stand in csrc/ops/frozen_linear/int8_args.h.
INT8_WAYS = ("pairs", "bytes", "tiles")
_INSTRUCTIONS = {"pairs": "vpmaddwd", "bytes": "vpdpbusd", "tiles": "tdpbssd"}
_KEEP = -2


def int8_way() -> str | None:
    """The one in use: the fastest that the instruction set in use has; ``None`` without the C++ library."""
    return INT8_WAYS[cpu_ops.int8_way(_KEEP)] if native.available() else None


def int8_instruction() -> str | None:
    """The processor's instruction that `int8_way` stands for, ``plain C++`` where there is none."""
    way = int8_way()
    return None if way is None else "plain C++" if native.isa() == "generic" else _INSTRUCTIONS[way]


@contextlib.contextmanager
def use_int8_way(name: str) -> Iterator[None]:
    """Multiply int8 in another of the ways that the instruction set in use has, for tests and measurements.

    Raises:
        BackendError: The name is unknown, the processor lacks it, or the library is not there.
    """
    here = []
    if native.available():
        here = [one for number, one in enumerate(INT8_WAYS) if cpu_ops.int8_way(number) == number]
        cpu_ops.int8_way(-1)
    if name not in here:
        raise BackendError(
            "use_int8_way",
            "way",
            expected=f"one of {here}, which this processor has" if here else "the library _C beside hfadapt_kernels",
            got=repr(name) if here else str(native.why_not()),
            hint=nearest(name, here, "Leave it out: the fastest is taken by itself."),
        )
    cpu_ops.int8_way(INT8_WAYS.index(name))
    try:
        yield
    finally:
        cpu_ops.int8_way(-1)
