"""One Triton kernel compiled ahead of time for one card family, and what the result takes; needs no GPU."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .targets import TARGETS, Target

__all__ = ["AotCase", "compile_case"]


@dataclass(frozen=True)
class AotCase:
    """A kernel with everything that decides its machine code.

    Attributes:
        kernel: The jitted function.
        signature: Argument name -> Triton type, for the arguments that stay variable. Tensors and the integers named in
            ``aligned`` are multiples of 16, as the launcher finds them for ordinary sizes.
        constants: Values of the constexpr arguments, and 1 for integers that the launcher makes constant.
        launch: ``num_warps``, ``num_stages``.
        size: Rank or head dimension for which the configuration is made; for counting work.
        aligned: Integer arguments that 16 divides.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    launch: Mapping[str, int]
    size: int = 64
    aligned: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def make(
        cls, kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], launch: Mapping[str, Any],
        *, size: int, aligned: str = "",
    ) -> AotCase:  # fmt: skip
        """Sort out a pool of types, constants and a launch configuration by what ``kernel`` takes."""
        fixed = {name: v for name, v in {**constants, **launch}.items() if name in kernel.arg_names}
        signature = {name: types[name] for name in kernel.arg_names if name not in fixed}
        options = {name: launch[name] for name in ("num_warps", "num_stages")}
        return cls(kernel, signature, fixed, options, size, frozenset(aligned.split()) & set(signature))

    @property
    def element(self) -> str:
        """Element type of the data: the first 16-bit pointer, else float32."""
        kinds = [kind.removeprefix("*") for kind in self.signature.values()]
        return next((kind for kind in kinds if kind in ("bf16", "fp16")), "fp32")

    @property
    def weight(self) -> str | None:
        """Element type of a weight that has one of its own, else ``None``."""
        kind = self.signature.get("w_ptr")
        return None if kind is None else kind.removeprefix("*")


def compile_case(case: AotCase, name: str) -> dict[str, Any]:
    """Registers, spills, shared memory, tensor memory and the kind of product of ``case`` on target ``name``.

    ``spills`` are bytes on NVIDIA (stores and loads, and any other use of the stack) and registers on AMD.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = TARGETS[name]
    types = {key: case.signature.get(key, "constexpr") for key in case.kernel.arg_names}
    divisible = {
        (index,): [["tt.divisibility", 16]]
        for index, key in enumerate(case.kernel.arg_names)
        if types[key].startswith("*") or key in case.aligned
    }
    source = ASTSource(fn=case.kernel, signature=types, constexprs=dict(case.constants), attrs=divisible)
    with _assembler_report() as report:
        compiled = triton.compile(
            source, target=GPUTarget(target.backend, target.arch, target.warp), options=dict(case.launch)
        )
    measured = _nvidia(compiled.asm["ptx"], report.getvalue()) if target.backend == "cuda" else _amd(compiled)
    columns = getattr(compiled.metadata, "tmem_size", 0) or 0
    return {"shared_bytes": compiled.metadata.shared, "tensor_columns": columns, **measured}


@contextlib.contextmanager
def _assembler_report() -> Iterator[io.StringIO]:
    """What ptxas says in Triton's own run of it: the flags of a second run of ours could differ."""
    from triton import knobs

    report = io.StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), knobs.cache.scope(), tempfile.TemporaryDirectory() as folder:
        knobs.nvidia.dump_ptxas_log = True
        # A kernel from the cache has no report.
        knobs.cache.dir, knobs.compilation.always_compile = folder, True
        with contextlib.redirect_stdout(report):
            yield report


def _nvidia(ptx: str, report: str) -> dict[str, Any]:
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = re.findall(r"Used (\d+) registers", report)
    if not frames or not registers:
        raise RuntimeError(f"ptxas did not report registers and spills: {report.strip()[-200:]!r}")
    stack, stores, loads = map(int, frames[-1])
    products = ("wgmma", "tcgen05.mma", "mma.sync")
    return {
        "registers": int(registers[-1]),
        "spills": max(stack, stores + loads),
        "product": next((mark.split(".")[0] for mark in products if mark in ptx), "fma"),
    }


def _amd(compiled: Any) -> dict[str, Any]:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        match = re.search(rf"\.{key}:\s+(\d+)", text)
        if match is None:
            raise RuntimeError(f"the assembly has no {key}")
        return int(match[1])

    # Vector registers only: a spilled scalar register goes to a lane of a vector register, not to memory.
    return {
        "registers": number("vgpr_count"),
        "spills": max(number("vgpr_spill_count"), number("private_segment_fixed_size") // 4),
        "product": "mfma" if "v_mfma" in text else "fma",
    }


def limits(target: Target, warps: int) -> dict[str, int]:
    """The largest values that one block of ``warps`` warps may have on ``target``."""
    return {
        "register_limit": target.registers_of(warps),
        "shared_limit": target.shared,
        "tensor_limit": target.tensor_columns,
    }
