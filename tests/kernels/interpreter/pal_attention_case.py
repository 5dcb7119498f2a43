"""Runs the Triton kernels of pal_attention in the interpreter; started by run_cases.py."""

from __future__ import annotations

import torch
from run_cases import load_tests

import hfadapt_kernels as hk

cases = load_tests("pal_attention")

# Name -> sizes, options, dtypes: what the dtype does not touch is run in float32 alone.
BOTH = (torch.float32, torch.bfloat16)
RUNS = {
    "mixed tasks": ((cases.IDS, 7, 40, 24, 2), {"activation": "gelu"}, BOTH),
    "key mask, dropout": ((cases.IDS, 9, 24, 12, 2), {"mask": cases.masks(5, 9)["keys"], "dropout": 0.3}, BOTH),
    "one task, causal, no biases": (
        ([0, 0], 19, 48, 36, 3),
        {"causal": True, "names": tuple(cases.REQUIRED)},
        (torch.float32,),
    ),
}
with hk.use_backend("triton"):
    for name, (sizes, options, dtypes) in RUNS.items():
        for dtype in dtypes:
            cases.check_all(*sizes, dtype, **options)
            print(f"ok {dtype} {name}", flush=True)
    cases.test_rows_without_a_task_get_zeros("triton")
    cases.test_a_token_that_sees_nothing_gets_zeros_and_finite_gradients("triton")
