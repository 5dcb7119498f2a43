"""Runs the Triton kernels of pal_attention in the interpreter; started by test_interpreter.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

import hfadapt_kernels as hk
from hfadapt_kernels.testing import repair_interpreter_bfloat16

repair_interpreter_bfloat16()
spec = importlib.util.spec_from_file_location("cases", Path(__file__).parents[1] / "test_pal_attention.py")
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)

RUNS = {
    "mixed tasks": ((cases.IDS, 7, 40, 24, 2), {"activation": "gelu"}),
    "one task, causal": (([0, 0], 19, 48, 36, 3), {"causal": True}),
    "key mask": ((cases.IDS, 9, 24, 12, 2), {"mask": cases.masks(5, 9)["keys"]}),
    "dropout": ((cases.IDS, 9, 24, 12, 2), {"dropout": 0.3}),
}
with hk.use_backend("triton"):
    for dtype in (torch.float32, torch.bfloat16):
        for name, (sizes, options) in RUNS.items():
            # Flash attention takes its probabilities from the log-sum-exp: a few more roundings than a plain softmax.
            slack = 4e-6 if dtype == torch.float32 else 0.0
            cases.check_all(*sizes, dtype, slack=slack, **options)
            print(f"ok {dtype} {name}", flush=True)
    cases.check_all(*RUNS["mixed tasks"][0], torch.float32, names=tuple(cases.REQUIRED), slack=4e-6)
    cases.test_rows_without_a_task_get_zeros("triton")
    cases.test_a_token_that_sees_nothing_gets_zeros_and_finite_gradients("triton")
