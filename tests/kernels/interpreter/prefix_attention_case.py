"""Runs the Triton kernels of prefix_attention in the interpreter; started by run_cases.py."""

from __future__ import annotations

import torch
from run_cases import load_tests

cases = load_tests("prefix_attention")

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
    "wide heads": (SMALL | {"dim": 80}, {"gate": True}),
    "wide heads, no gating": (SMALL | {"dim": 80}, {"form": "no_gating"}),
    "several blocks": (
        {"ids": [0], "lengths": [70], "heads": 1, "groups": 1, "queries": 70, "keys": 67, "dim": 17},
        {"causal": True, "gate": True, "bias": False},
    ),
}
# Masks and forms do not depend on the dtype, wide heads differ from others in float32 alone, and float16 takes the same
# code as bfloat16.
NARROW = ("gate, bias, grouped heads", "bool padding and dropout", "no gating", "several blocks")
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    chosen = RUNS if dtype == torch.float32 else NARROW if dtype == torch.bfloat16 else NARROW[:1]
    for name in chosen:
        shape, options = RUNS[name]
        cases.check(cases.Case(**shape, dtype=dtype), "triton", **options)
        print(f"ok {dtype} {name}", flush=True)
