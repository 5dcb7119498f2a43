"""Runs the Triton kernels of adapter_fusion in the interpreter; started by test_interpreter.py."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path

import torch

from hfadapt_kernels.testing import repair_interpreter_bfloat16

repair_interpreter_bfloat16()
spec = importlib.util.spec_from_file_location("cases", Path(__file__).parents[1] / "test_adapter_fusion.py")
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)

dropout = {"dropout": 0.4, "training": True, "seed": torch.tensor([(1 << 33) + 5])}
RUNS = {
    "ranks differ": ({"rows": 2, "tokens": 17, "dim": 24, "ranks": (1, 16, 7, 70)}, {"temperature": 1.5}),
    "score dropout": ({"rows": 3, "tokens": 5, "ranks": (4, 20)}, dropout),
    "no biases": ({"rows": 3, "tokens": 5, "ranks": (4, 20), "biases": False}, {}),
}
for dtype in (torch.float32, torch.bfloat16):
    for name, (shape, options) in RUNS.items():
        cases.check(partial(cases.Case, **shape, dtype=dtype), "triton", **options)
        print(f"ok {dtype} {name}", flush=True)
