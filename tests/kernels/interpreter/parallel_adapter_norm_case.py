"""Runs the Triton kernels of parallel_adapter_norm in the interpreter; started by run_cases.py."""

from __future__ import annotations

import torch
from run_cases import load_tests

cases = load_tests("parallel_adapter_norm")

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
        # bfloat16 and float16 take the same code.
        if (dtype != torch.float32 and name == "no norm") or (dtype == torch.float16 and name != "mixed tasks"):
            continue
        torch.manual_seed(0)
        cases.compare(cases.make(*sizes, **making), ids, "triton", dtype, **options)
        print(f"ok {dtype} {name}", flush=True)
