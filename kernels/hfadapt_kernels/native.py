"""Finds and loads the C++ library, and says why when it cannot."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from .errors import BackendError
from .misfits import nearest
from .namespace import CPU_NAMESPACE, SUFFIX, cpu_ops

__all__ = ["ISA_NAMES", "available", "isa", "torch_product_is_fast", "use_isa", "why_not"]

_log = logging.getLogger("hfadapt_kernels")
# only a checkout has them: there the library may be older than the Python code beside it
_BINDINGS = Path(__file__).resolve().parents[2] / "csrc" / "torch" / "bindings.cpp"
_DEFINITION = re.compile(r'm\.def\(((?:\s*"[^"]*")+)\s*\)')

ISA_NAMES = ("generic", "avx2", "avx512", "avx512bf16", "amx")


@functools.cache
def _load() -> str | None:
    """Load the library once; ``None`` on success, else the reason."""
    folder = Path(__file__).parent
    found = sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd"))
    if not found:
        return _why_not_built(folder / "_C.not_built.txt")
    try:
        torch.ops.load_library(str(found[0]))
    except (OSError, RuntimeError) as error:
        return f"{found[0].name} does not load into torch {torch.__version__}: {error}"
    if reason := _outdated(_BINDINGS):
        _log.warning("%s; ops on the CPU run through torch until then", reason)
        return reason
    return None


def _why_not_built(told: Path) -> str:
    """What the build said where it failed (setup.py writes it), and how to build again."""
    if told.is_file():
        reason = f"the C++ library was not built: {told.read_text('utf-8').strip()}"
        cure = "with g++ or clang++ on the PATH (or CXX=...), HFADAPT_BUILD_CPP=1 makes the install stop at what fails"
    else:
        reason = "the C++ library was left out when hfadapt was installed (HFADAPT_BUILD_CPP=0, or a pure Python wheel)"
        cure = "install it from its sources with g++ or clang++ on the PATH"
    if SUFFIX:
        return f"{reason}; on Linux and x86-64, kernels.get_kernel(..., backend='cpu') takes the variant that has it"
    return f"{reason}; {cure}: HFADAPT_BUILD_CPP=1 pip install --force-reinstall --no-deps ."


def _outdated(bindings: Path) -> str | None:
    """Why the loaded library is not that of the sources in ``bindings``; ``None`` when it is, or they are not there."""
    if not bindings.is_file():
        return None
    for definition in _DEFINITION.findall(bindings.read_text("utf-8")):
        wanted = f"{CPU_NAMESPACE}::" + "".join(re.findall(r'"([^"]*)"', definition))
        name = wanted.partition("(")[0]
        built = torch._C._jit_get_schemas_for_operator(name)
        if torch._C.parse_schema(wanted) not in built:
            return (
                f"the C++ library was built from other sources than {bindings.parents[1]}: {name.partition('::')[2]} "
                f"{'takes other arguments' if built else 'is missing'}; "
                "build it again (pip install -e ., or python setup.py build_ext --inplace)"
            )
    return None


def available() -> bool:
    """Whether the C++ ops can be called."""
    return _load() is None


def why_not() -> str | None:
    """Why the C++ ops cannot be called; ``None`` when they can."""
    return _load()


def isa() -> str | None:
    """Instruction set in use (one of `ISA_NAMES`), or ``None`` without the library."""
    return ISA_NAMES[cpu_ops.isa(-1)] if available() else None


@functools.cache
def torch_product_is_fast() -> bool:
    """Whether torch's own float32 product is near the peak here: MKL on Intel processors. On others it is not."""
    if not torch.backends.mkl.is_available():
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "GenuineIntel" in cpuinfo.read_text(encoding="utf-8", errors="replace")[:4096]


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run the C++ ops with a lower instruction set, for tests and measurements.

    Raises:
        BackendError: The name is unknown, the processor lacks it, or the library is not there.
    """
    if not available():
        raise BackendError(
            "use_isa",
            "no C++ library",
            expected="the library _C beside hfadapt_kernels",
            got=str(why_not()),
            hint="Leave use_isa out: without the library the ops run through torch, on one instruction set.",
        )
    before = cpu_ops.isa(-1)
    if name not in ISA_NAMES or cpu_ops.isa(ISA_NAMES.index(name)) != ISA_NAMES.index(name):
        here = [one for number, one in enumerate(ISA_NAMES) if cpu_ops.isa(number) == number]
        cpu_ops.isa(before)
        raise BackendError(
            "use_isa",
            "instruction set",
            expected=f"one of {here}, which this processor has",
            got=repr(name),
            hint=nearest(name, here, "Use 'generic', which every processor runs."),
        )
    try:
        yield
    finally:
        cpu_ops.isa(before)
