"""Runs the Triton kernel of grouped_lora in the interpreter; started by run_cases.py."""

from __future__ import annotations

import torch
from run_cases import load_tests

import hfadapt_kernels as hk

cases = load_tests("grouped_lora")

RUNS = {
    "mixed tasks and ranks": ((cases.IDS, 3, 37, 53, [1, 3, 24, 5]), {}),
    "one task": (([0, 0], 9, 40, 24, [16]), {}),
    "rank above a block": (([1, 0, -1], 5, 24, 20, [70, 8]), {}),
    "dropout": ((cases.IDS, 4, 40, 24, [8, 3, 8, 16]), {"dropout": 0.4}),
}
with hk.use_backend("triton"):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for name, (sizes, options) in RUNS.items():
            # bfloat16 and float16 take the same code.
            if dtype == torch.float16 and name != "mixed tasks and ranks":
                continue
            cases.check_all(*sizes, dtype, **options)
            print(f"ok {dtype} {name}", flush=True)
    cases.test_rows_without_a_task_keep_the_base_bit_for_bit("triton")
    cases.test_lora_linear_equals_base_plus_update_with_all_gradients("triton")
    cases.test_weights_and_input_may_be_views_of_any_stride("triton")
