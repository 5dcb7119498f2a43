"""Runs the Triton kernels of prefix_attention in the interpreter; started by test_interpreter.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

from hfadapt_kernels.testing import repair_interpreter_bfloat16

repair_interpreter_bfloat16()
spec = importlib.util.spec_from_file_location("cases", Path(__file__).parents[1] / "test_prefix_attention.py")
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)

SMALL = {"ids": [1, -1, 0], "lengths": [3, 18], "heads": 2, "groups": 1, "queries": 5, "keys": 19, "dim": 8}
padding = torch.ones(3, 1, 1, 19, dtype=torch.bool)
padding[:, :, :, 15:] = False
hidden = torch.zeros(3, 1, 5, 19, dtype=torch.bool)
dropout = {"dropout": 0.3, "training": True, "seed": torch.tensor([(1 << 40) + 77])}
additive = torch.zeros(padding.shape).masked_fill(~padding, torch.finfo(torch.float32).min)
RUNS = {
    "gate, bias, grouped heads": (SMALL, {"gate": True}),
    "causal": (SMALL, {"causal": True, "bias": False}),
    "bool padding and dropout": (SMALL, {"mask": padding, "gate": True, **dropout}),
    "additive padding": (SMALL, {"mask": additive}),
    "nothing to see": (SMALL, {"mask": hidden}),
    "no gating": (SMALL, {"form": "no_gating", **dropout}),
    "relu": (SMALL, {"form": "relu", **dropout}),
    "several blocks": (
        {"ids": [0], "lengths": [70], "heads": 1, "groups": 1, "queries": 70, "keys": 67, "dim": 17},
        {"causal": True, "gate": True, "bias": False},
    ),
}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for name, (shape, options) in RUNS.items():
        if dtype == torch.float16 and name not in ("gate, bias, grouped heads", "causal"):
            continue
        cases.check(cases.Case(**shape, dtype=dtype), "triton", **options)
        print(f"ok {dtype} {name}", flush=True)
