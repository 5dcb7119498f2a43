"""Runs the Triton kernels of parallel_adapter_norm in the interpreter; started by test_interpreter.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

from hfadapt_kernels.testing import repair_interpreter_bfloat16

repair_interpreter_bfloat16()
spec = importlib.util.spec_from_file_location("cases", Path(__file__).parents[1] / "test_parallel_adapter_norm.py")
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)

RUNS = {
    "one task": ((2, 5, 24, 20, [5]), None, {"norm": "layer", "activation": "gelu"}, {"scale": "vector"}),
    "mixed tasks": ((4, 3, 20, 18, [3, 20, 9]), [1, -1, 0, 1], {"norm": "layer", "activation": "silu"}, {}),
    "rms, dropout, learned number": (
        (3, 4, 24, 16, [17, 6]),
        [1, 0, 1],
        {"norm": "rms", "norm_offset": 1.0, "dropout": 0.3, "training": True, "seed": torch.tensor([7 << 33 | 5])},
        {"scale": "number"},
    ),
    "no norm": ((3, 4, 24, 16, [17, 6]), [1, 0, -1], {"norm": None, "activation": "tanh"}, {"norm": None}),
}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for name, (sizes, ids, options, making) in RUNS.items():
        if dtype != torch.float32 and name == "no norm":
            continue
        torch.manual_seed(0)
        cases.compare(cases.make(*sizes, **making), ids, "triton", dtype, **options)
        print(f"ok {dtype} {name}", flush=True)
