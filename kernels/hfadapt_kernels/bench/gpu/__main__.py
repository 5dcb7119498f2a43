"""``python -m hfadapt_kernels.bench.gpu --out FOLDER``: the parts in the order of their value, a JSON each."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["main"]


def _device(kind: str) -> dict[str, Any]:
    import torch
    import triton

    name = torch.cuda.get_device_name() if kind == "cuda" else f"{platform.machine()}, kernels interpreted"
    return {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    beside.replace(path)


def _parts() -> dict[str, Callable[[Any, str], Iterator[dict[str, Any]]]]:
    from .encoder import encoder
    from .neighbours import neighbours
    from .rates import rates
    from .right import correctness, equal_bits

    found = {"a": correctness, "b": equal_bits, "c": rates, "d": encoder, "e": neighbours}
    return {f"{letter}_{part.__name__}": part for letter, part in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 1 where a result was wrong, 0 else."""
    parser = argparse.ArgumentParser(prog="hfadapt_kernels.bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: interpreted, at tiny sizes")
    parser.add_argument("--parts", default="abcde", help="letters of the parts to run")
    parser.add_argument("--seconds", type=float, default=210.0, help="after these no new row is begun")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        # Read when a kernel is decorated, which is when it is first launched.
        os.environ["TRITON_INTERPRET"] = "1"
        from ...testing import patch_interpreter_once

        patch_interpreter_once()
    import torch

    from .sizes import CARD, INTERPRETER

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no card: --device cpu interprets the kernels at tiny sizes")
    sizes = CARD if options.device == "cuda" else INTERPRETER
    options.out.mkdir(parents=True, exist_ok=True)
    about, end, wrong = _device(options.device), time.monotonic() + options.seconds, 0
    for name, part in _parts().items():
        if name[0] not in options.parts:
            continue
        torch.manual_seed(0)
        start, rows, state = time.monotonic(), [], "whole"
        try:
            for row in part(sizes, options.device):
                rows.append(row)
                wrong += not row.get("right", True)
                if time.monotonic() > end:
                    state = "cut: out of time"
                    break
        except Exception as error:  # what was measured before is written, and the parts behind it run
            state, wrong = f"{type(error).__name__}: {error}", wrong + 1
        seconds = round(time.monotonic() - start, 1)
        _write(options.out / f"{name}.json", {"about": about, "state": state, "seconds": seconds, "rows": rows})
        print(f"{name}: {len(rows)} rows in {seconds} s, {state}; wrong so far: {wrong}", flush=True)
        if time.monotonic() > end:
            break
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
