"""Runs the Triton kernels of adapter_fusion in the interpreter; started by run_cases.py."""

from __future__ import annotations

from functools import partial

import torch
from run_cases import load_tests

cases = load_tests("adapter_fusion")

dropout = {"dropout": 0.4, "training": True, "seed": torch.tensor([(1 << 33) + 5])}
RUNS = {
    "ranks differ": ({"rows": 2, "tokens": 9, "dim": 24, "ranks": (1, 7, 70)}, {"temperature": 1.5}),
    "score dropout": ({"rows": 3, "tokens": 5, "ranks": (4, 20)}, dropout),
    "no biases": ({"rows": 3, "tokens": 5, "ranks": (4, 20), "biases": False}, {}),
}
for dtype in (torch.float32, torch.bfloat16):
    for name, (shape, options) in RUNS.items():
        cases.check(partial(cases.Case, **shape, dtype=dtype), "triton", **options)
        print(f"ok {dtype} {name}", flush=True)
