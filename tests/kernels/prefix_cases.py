"""What the tests of `prefix_attention` share: random cases, shapes, and the comparison with float64."""

from __future__ import annotations

import pytest
import torch

from hfadapt_kernels import TaskBatch, native, use_backend
from hfadapt_kernels.prefix_attention import prefix_attention, prefix_attention_reference
from hfadapt_kernels.testing import assert_as_good_as_eager, leaves, nan_poisoned

needs_cpp = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpp)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMS = ("softmax", "no_gating", "relu")


class Case:
    """Random inputs of one shape; ``lengths`` are the prefix lengths of the tasks, ``ids`` the rows' tasks."""

    def __init__(self, ids, lengths, heads=4, groups=2, queries=5, keys=7, dim=8, dtype=torch.float32, seed=0):
        make = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=make, dtype=torch.float64).to(dtype)

        rows = len(ids)
        self.ids, self.dtype = ids, dtype
        self.batch = TaskBatch.from_ids(ids, len(lengths))
        self.tensors = [
            normal(rows, heads, queries, dim), normal(rows, groups, keys, dim), normal(rows, groups, keys, dim)
        ]  # fmt: skip
        self.prefix_key = [normal(groups, length, dim) for length in lengths]
        self.prefix_value = [normal(groups, length, dim) for length in lengths]
        self.bias = normal(1, heads, queries, keys)
        self.grad = normal(rows, heads, queries, dim)
        self.grad_gate = normal(rows, heads, queries).float()

    def inputs(self, dtype):
        flat = leaves([*self.tensors, *self.prefix_key, *self.prefix_value, self.bias], dtype)
        tasks = len(self.prefix_key)
        return flat, (*flat[:3], flat[3 : 3 + tasks], flat[3 + tasks : 3 + 2 * tasks]), flat[-1]

    def run(self, dtype, *, through_op, bias=True, gate=False, **options):
        """Outputs and gradients of the op, or of the plain reference, at ``dtype``."""
        # Eager float16 is computed in float32, which our kernels do too, and rounded.
        wide = torch.float32 if dtype == torch.float16 and not through_op else dtype
        flat, args, position_bias = self.inputs(wide)
        scaling = options.pop("scaling", None) or args[0].shape[-1] ** -0.5
        if not bias:
            position_bias, flat = None, flat[:-1]
        if through_op:
            out = prefix_attention(
                *args, self.batch, position_bias=position_bias, scaling=scaling, return_gate=gate, **options
            )
            outs = list(out) if gate else [out]
        else:
            training = options.pop("training", False)
            if not training:
                options.update(dropout=0.0, seed=None)
            out, lam = prefix_attention_reference(
                *args, self.batch.op_ids, position_bias=position_bias, scaling=scaling, **options
            )
            outs = [out, lam] if gate else [out]
        seeds = [self.grad.to(wide), self.grad_gate.to(outs[1].dtype)] if gate else [self.grad.to(wide)]
        live = [(out, seed) for out, seed in zip(outs, seeds, strict=True) if out.requires_grad]
        grads = torch.autograd.grad([o for o, _ in live], flat, [s for _, s in live], allow_unused=True)
        if wide != dtype:
            outs[0], grads = outs[0].to(dtype), [g if g is None else g.to(dtype) for g in grads]
        return outs, grads


def check(case, backend, *, gate=False, bias=True, **options):
    """Outputs and every gradient are at most twice as far from float64 as the eager formula at the same dtype."""
    with use_backend(backend), nan_poisoned():
        outs, grads = case.run(case.dtype, through_op=True, gate=gate, bias=bias, **dict(options))
    eager_outs, eager_grads = case.run(case.dtype, through_op=False, gate=gate, bias=bias, **dict(options))
    exact_options = {k: v.double() if k == "mask" and v.is_floating_point() else v for k, v in options.items()}
    exact_outs, exact_grads = case.run(torch.float64, through_op=False, gate=gate, bias=bias, **exact_options)
    tasks = len(case.prefix_key)
    names = ["query", "key", "value"]
    names += [f"prefix_{kind}[{t}]" for kind in ("key", "value") for t in range(tasks)] + ["position_bias"]
    for got, eager, exact in zip(outs, eager_outs, exact_outs, strict=True):
        assert_as_good_as_eager(got, eager, exact, "output")
    for name, got, eager, exact in zip(names, grads, eager_grads, exact_grads, strict=False):
        if exact is None or got is None:
            assert exact is None or exact.abs().max() == 0 or exact.numel() == 0, f"{name}: gradient missing"
        else:
            assert_as_good_as_eager(got, eager, exact, f"gradient of {name}")


SHAPES = {
    "ragged": {"ids": [1, -1, 0, 2, 1], "lengths": [3, 6, 0]},
    "one_row_a_task": {"ids": [2, 0, 1], "lengths": [4, 4, 4], "heads": 3, "groups": 3, "dim": 16},
    "task_without_rows": {"ids": [0, 0, 2, -1], "lengths": [5, 2, 17], "dim": 32},
    "all_rows_one_task": {"ids": [0] * 4, "lengths": [30], "heads": 2, "groups": 2, "queries": 17, "keys": 17},
    "no_row_has_a_task": {"ids": [-1, -1], "lengths": [3]},
    "one_of_everything": {
        "ids": [0], "lengths": [1], "heads": 1, "groups": 1, "queries": 1, "keys": 1, "dim": 1
    },
    "primes": {
        "ids": [1, 0, 1], "lengths": [13, 31], "heads": 7, "groups": 1, "queries": 29, "keys": 37, "dim": 17
    },
    "decode": {"ids": [0, 1, -1, 0], "lengths": [30, 7], "queries": 1, "keys": 131, "dim": 64, "heads": 8},
    "blocks": {"ids": [1, 0], "lengths": [65, 64], "queries": 129, "keys": 129, "dim": 64, "heads": 2, "groups": 1},
    "wide_heads": {"ids": [0, -1], "lengths": [9], "queries": 20, "keys": 33, "dim": 136, "heads": 2, "groups": 2},
}  # fmt: skip
