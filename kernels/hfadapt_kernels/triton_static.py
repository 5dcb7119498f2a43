"""Compiles every Triton kernel ahead of time, with no GPU, and reads off what it takes on each target.

``hfadapt bench triton-static`` prints the table; ``python -m hfadapt_kernels.triton_static [--json] [--target sm_90]``
does the same. It shows whether a committed configuration compiles, spills and fits the card; it shows nothing about
speed. Must run in a process without ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UnsupportedError
from .triton_work import floor_us, work

__all__ = ["TARGETS", "Target", "collect", "problems", "run"]


@dataclass(frozen=True)
class Target:
    """A card family.

    Attributes:
        backend: ``cuda`` or ``hip``.
        arch: What Triton calls it.
        warp: Threads of a warp.
        registers: Registers that one thread may have.
        shared: Bytes of shared memory that one block may have.
    """

    backend: str
    arch: int | str
    warp: int
    registers: int
    shared: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 255, 163 * 1024),
    "sm_90": Target("cuda", 90, 32, 255, 227 * 1024),
    "sm_100": Target("cuda", 100, 32, 255, 227 * 1024),
    "gfx942": Target("hip", "gfx942", 64, 512, 64 * 1024),
}
# A block's registers must fit the register file, too (NVIDIA: 64 Ki of 32 bits).
_REGISTER_FILE = 65536
_ELEMENTS = {"*bf16": "bf16", "*fp16": "fp16", "*fp32": "fp32"}

AotCase = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]


def collect() -> list[tuple[str, AotCase]]:
    """(op, case) for every ``aot_cases()`` in a ``triton.py`` of this package's ops."""
    package = importlib.import_module(__package__ or "hfadapt_kernels")
    found: list[tuple[str, AotCase]] = []
    for info in pkgutil.iter_modules(package.__path__):
        if info.ispkg and (Path(package.__path__[0]) / info.name / "triton.py").exists():
            module = importlib.import_module(f"{package.__name__}.{info.name}.triton")
            if hasattr(module, "aot_cases"):
                found += [(info.name, case) for case in module.aot_cases()]
    return found


def run(targets: Iterable[str] | None = None, ops: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """One row for each kernel, configuration and target.

    Args:
        targets: Names in `TARGETS`; all when ``None``.
        ops: Op names; all when ``None``.

    Raises:
        UnsupportedError: A target is unknown, or this process interprets Triton kernels.
    """
    names = list(TARGETS) if targets is None else list(targets)
    for name in names:
        if name not in TARGETS:
            raise UnsupportedError("triton_static", "target", expected=f"one of {list(TARGETS)}", got=repr(name))
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise UnsupportedError("triton_static", "TRITON_INTERPRET=1 is set", expected="a process that compiles")
    # The default of this flag changes between Triton releases; numerics must not.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    wanted = None if ops is None else set(ops)
    return [_row(op, case, name) for op, case in collect() if wanted is None or op in wanted for name in names]


def problems(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong in a table: failed compilations, spills, too many registers, too much shared memory."""
    found = []
    for row in rows:
        where = f"{row['kernel']} {row['config']} {row['target']}"
        if row["error"]:
            found.append(f"{where}: {row['error']}")
            continue
        if row["spills"]:
            found.append(f"{where}: {row['spills']} bytes or registers spilled")
        if row["shared_bytes"] > row["shared_limit"]:
            found.append(f"{where}: {row['shared_bytes']} bytes of shared memory, limit {row['shared_limit']}")
        if row["registers"] > row["register_limit"]:
            found.append(f"{where}: {row['registers']} registers, limit {row['register_limit']}")
    return found


def _element(signature: dict[str, str]) -> str:
    """Element type of the data: the first 16-bit pointer, else float32."""
    kinds = [_ELEMENTS[kind] for kind in signature.values() if kind in _ELEMENTS]
    return next((kind for kind in kinds if kind != "fp32"), "fp32")


def _row(op: str, case: AotCase, name: str) -> dict[str, Any]:
    kernel, signature, constants, options = case
    target, element = TARGETS[name], _element(signature)
    launch = {key: options[key] for key in ("num_warps", "num_stages") if key in options}
    shown = {key: value for key, value in options.items() if key != "aligned"}
    blocks = {key: value for key, value in constants.items() if re.fullmatch(r"B[A-Z]", key)}
    config = " ".join(f"{key}={value}" for key, value in {**blocks, **shown}.items())
    flags = " ".join(
        f"{key}={value:d}" for key, value in constants.items() if isinstance(value, (bool, int)) and key not in blocks
    )
    threads = launch.get("num_warps", 4) * target.warp
    limit = min(target.registers, _REGISTER_FILE // threads) if target.backend == "cuda" else target.registers
    row: dict[str, Any] = {
        "kernel": kernel.__name__,
        "target": name,
        "registers": 0,
        "spills": 0,
        "shared_bytes": 0,
        "op": op,
        "dtype": element,
        "config": config,
        "register_limit": limit,
        "shared_limit": target.shared,
        "product": "",
        "flops": None,
        "bytes": None,
        "h100_floor_us": None,
        "flags": flags,
        "error": "",
    }
    counted = work(kernel.__name__, element, options)
    if counted is not None:
        row |= {"flops": counted[0], "bytes": counted[1], "h100_floor_us": round(floor_us(*counted, element), 3)}
    try:
        row |= _compile(kernel, signature, constants, launch, options.get("aligned", ()), target)
    except Exception as error:  # the compiler raises many types; each becomes a line of the table
        row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"
    return row


def _compile(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    launch: dict[str, int],
    divisible: Sequence[str],
    target: Target,
) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    # Tensors of torch are 16-byte aligned: the launcher would find that out and specialise on it.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if types[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    options = dict(launch)
    if target.backend == "hip":
        options["num_stages"] = min(2, options.get("num_stages", 2))
    compiled = triton.compile(source, target=GPUTarget(target.backend, target.arch, target.warp), options=options)
    measured = _cuda(compiled, int(target.arch)) if target.backend == "cuda" else _hip(compiled)
    return {"shared_bytes": compiled.metadata.shared, **measured}


def _cuda(compiled: Any, arch: int) -> dict[str, Any]:
    """Registers and spilled bytes from ptxas itself: the compiled kernel learns its own only when a driver loads it."""
    from triton.backends.nvidia.compiler import get_ptxas

    ptx = compiled.asm["ptx"]
    match = re.search(r"\.target (\w+)", ptx)
    assert match is not None, "PTX without a target"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [
            get_ptxas(arch).path,
            "-v",
            "--gpu-name",
            match[1],
            str(path),
            "-o",
            str(Path(folder, "kernel.cubin")),
        ]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    registers = re.findall(r"Used (\d+) registers", text)
    names = {"wgmma": "wgmma", "tcgen05": "tcgen05", "mma.sync": "mma.sync"}
    return {
        "registers": int(registers[-1]),
        "spills": sum(map(int, spilled[-1])),
        "product": next((name for mark, name in names.items() if mark in ptx), "fma"),
    }


def _hip(compiled: Any) -> dict[str, Any]:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        match = re.search(rf"\.{key}:\s+(\d+)", text)
        return int(match[1]) if match else 0

    # Vector registers only: a spilled scalar register goes to a lane of a vector register, not to memory.
    return {
        "registers": number("vgpr_count"),
        "spills": number("vgpr_spill_count"),
        "product": "mfma" if "v_mfma" in text else "fma",
    }


_COLUMNS = ("kernel", "dtype", "config", "target", "registers", "spills", "shared_bytes", "product", "h100_floor_us")


def _table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [_COLUMNS, *(tuple(str(row[name]) for name in _COLUMNS) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table or its JSON; the exit status is 1 when `problems` finds any."""
    parser = argparse.ArgumentParser(prog="hfadapt_kernels.triton_static", description=__doc__)
    parser.add_argument("--target", action="append", help=f"one of {list(TARGETS)}; may be repeated")
    parser.add_argument("--op", action="append", help="only this op; may be repeated")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rows = run(options.target, options.op)
    found = problems(rows)
    print(json.dumps({"rows": rows, "problems": found}, indent=1) if options.json else _table(rows))
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
